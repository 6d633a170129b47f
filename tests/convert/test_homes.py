# SPDX-License-Identifier: Apache-2.0
"""Parts from their public homes: folders in those layouts, tiny, with what else the real ones hold."""

import dataclasses
import json
import pathlib
import pickle
import re
import sys
import types
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch.build import model_config
from tests.distributed.tiny import tiny_config
from tests.launch import small_decoders, small_painters
from vllm2_jax.convert import (
    bridge,
    clip,
    diffusers,
    grounding_dino,
    internlm2,
    internvit,
    llama,
    swin,
    unipose,
)
from vllm2_jax.convert.homes import grow, open_home
from vllm2_jax.convert.rules import ConversionError, Plan
from vllm2_jax.decoders.diffusion.stable_diffusion import StableDiffusion
from vllm2_jax.llm.lora import LoRAConfig
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.train.assemble import assemble
from vllm2_jax.train.checkpoint import load_weights
from vllm2_jax.train.exporting import Source
from vllm2_jax.train.streaming import weights_folder
from vllm2_jax.vision.internvit import InternViTConfig

OLD_VOCAB = 20


def sizes(**decoders):
    """The tiny model with these decoders."""
    config = tiny_config()
    with config.unlocked(), config.ignore_type():
        config.model.decoders = decoders
    return model_config(config, load_tokenizer(TINY_TOKENIZER))


def abstract(config):
    return jax.eval_shape(lambda: VisionLLMv2(config, rngs=Rngs(0)))


def part_of(config, part):
    """Random leaves of a part, by paths inside it."""
    rng = np.random.default_rng(0)
    leaves = flatten_paths(abstract(config))[0]
    inside = {path.removeprefix(f"{part}/"): x for path, x in leaves.items() if path.startswith(f"{part}/")}
    return {path: rng.normal(size=x.shape).astype(np.float32) for path, x in inside.items()}


def official(table, leaves):
    """The tensors that a table makes of leaves; those without a row are left out."""
    known = {path: x.shape for path, x in leaves.items()}
    rows = [row for row in table if not hasattr(row, "path") or list(row.parts(known))]
    paths = {path for row in rows if hasattr(row, "path") for part in row.parts(known) for path in part.paths}
    plan = Plan.make(rows, {path: shape for path, shape in known.items() if path in paths})
    tensors = {}
    for key, part in plan.parts.items():
        arrays = (leaves[path] if part.layer is None else leaves[path][part.layer] for path in part.paths)
        tensors[key] = np.ascontiguousarray(part.rule.transform.inverse(*arrays))
    tensors |= {name: tensors[key] for name, key in plan.aliases.items()}
    return tensors | {key: buffer.value() for key, buffer in plan.buffers.items()}


def write(folder, tensors, config=None):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_torch(path, tensors):
    """What torch.save writes, by its published layout; the classes it names are stand-ins."""
    storage = type("FloatStorage", (), {"__module__": "torch", "__qualname__": "FloatStorage"})

    def _rebuild_tensor_v2(*args):
        raise AssertionError("never called: only its name is written")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage, utils._rebuild_tensor_v2 = storage, _rebuild_tensor_v2

    class Tensor:
        def __init__(self, key, array):
            self.key, self.array = key, array

        def __reduce__(self):
            strides = tuple(stride // 4 for stride in self.array.strides)
            return _rebuild_tensor_v2, (Stored(self.key, self.array.size), 0, self.array.shape, strides)

    class Stored:
        def __init__(self, key, count):
            self.pid = ("storage", storage, key, "cpu", count)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return getattr(value, "pid", None)

    with pytest.MonkeyPatch.context() as patch, zipfile.ZipFile(path, "w") as archive:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        with archive.open("x/data.pkl", "w") as stream:
            arrays = [np.array(array, np.float32, order="C") for array in tensors.values()]
            named = {name: Tensor(str(i), arrays[i]) for i, name in enumerate(tensors)}
            Pickler(stream, 2).dump({"model": named, "epoch": 3})
        for i, array in enumerate(arrays):
            archive.writestr(f"x/data/{i}", array.tobytes())
    return path


def check(config, part, value, root, leaves, new=()):
    """The part is filled with these leaves, all but the new ones."""
    made = assemble(config, {part: value}, root)
    assert made.leaves.keys() == {f"{part}/{path}" for path in leaves if not path.startswith(new or "\0")}
    for path, leaf in made.leaves.items():
        want = leaves[path.removeprefix(f"{part}/")]
        np.testing.assert_array_equal(leaf.read(slice(None)), want, path)
    return made


def clip_config(config):
    return {
        **{"hidden_size": config.width, "num_hidden_layers": config.depth, "patch_size": config.patch},
        **{"num_attention_heads": config.heads, "intermediate_size": config.mlp},
        "image_size": config.image_size,
    }


def llm_json(config):
    return {
        **{"hidden_size": config.width, "num_hidden_layers": config.depth, "vocab_size": OLD_VOCAB},
        **{"num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads},
        **{"intermediate_size": config.mlp, "rms_norm_eps": config.rms_eps},
    }


def test_clip_with_its_text_encoder(tmp_path):
    config = sizes()
    leaves = part_of(config, "vision")
    tensors = official(clip.table(config.vision), leaves)
    tensors |= {"text_model.embeddings.position_ids": np.arange(3), "logit_scale": np.ones(1, np.float32)}
    write(tmp_path / "clip", tensors, {"vision_config": clip_config(config.vision), "text_config": {}})
    check(config, "vision", "clip:clip", tmp_path, leaves)


def test_choices_that_shapes_do_not_tell(tmp_path):
    config = sizes()
    leaves = part_of(config, "vision")
    other = clip_config(config.vision) | {"num_attention_heads": 8}
    write(tmp_path / "clip", official(clip.table(config.vision), leaves), other)
    with pytest.raises(ConversionError, match="heads is 8 there, 4 here"):
        assemble(config, {"vision": "clip:clip"}, tmp_path)


@pytest.mark.parametrize(
    ("kind", "theirs", "line"),
    [
        ("clip", {"num_attention_heads": 8}, "heads is 8 there, 4 here"),
        ("clip", {"layer_norm_eps": 2e-5}, "eps is 2e-05 there, 1e-05 here"),
        ("clip", {"image_size": 560}, "image_size is 560 there, 56 here"),
        ("clip", {"qk_normalization": True}, "a InternViTConfig there, a CLIPConfig here"),
        ("internvit", {"num_attention_heads": 4}, "heads is 4 there, 2 here"),
        ("internvit", {"layer_norm_eps": 1e-3}, "eps is 0.001 there, 1e-06 here"),
        ("llama", {"num_attention_heads": 8}, "heads is 8 there, 4 here"),
        ("llama", {"num_key_value_heads": 1}, "kv_heads is 1 there, 2 here"),
        ("llama", {"rms_norm_eps": 1e-3}, "rms_eps is 0.001 there, 1e-05 here"),
        ("llama", {"rope_theta": 5e5}, "rope is RopeConfig(theta=500000.0"),
        (
            "internlm2",
            {"bias": True},
            "qkv_bias is True there, False here|out_bias is True there",
        ),
    ],
)
def test_choices_of_every_home(tmp_path, kind, theirs, line):
    config, internvit = sizes(), InternViTConfig(width=16, depth=2, heads=2, mlp=32, image_size=56, patch=14)
    llm = dataclasses.replace(config.llm, kv_heads=2)
    ours = {"clip": config.vision, "internvit": internvit}.get(kind, llm)
    if kind == "internvit":
        own = clip_config(ours) | {"qk_normalization": True, "layer_norm_eps": ours.eps}
    else:
        rope = {"max_position_embeddings": llm.rope.max_positions, "rope_theta": llm.rope.theta}
        own = clip_config(ours) if kind == "clip" else llm_json(ours) | rope
    write(tmp_path / "same", {"x": np.zeros(1, np.float32)}, own)
    assert open_home(kind, tmp_path / "same", ours).differing == ()
    write(tmp_path / "other", {"x": np.zeros(1, np.float32)}, own | theirs)
    differing = "|".join(open_home(kind, tmp_path / "other", ours).differing)
    assert differing.startswith(line) and differing.count("|") == line.count("|")


def test_adapters_are_new(tmp_path):
    config = sizes().llm
    write(tmp_path / "llama", {"x": np.zeros(1, np.float32)}, llm_json(config))
    adapted = dataclasses.replace(config, lora=LoRAConfig(rank=2, alpha=4.0))
    without, opened = (open_home("llama", tmp_path / "llama", ours) for ours in (config, adapted))
    assert len(llama.table(adapted)) > len(opened.table) == len(without.table)
    assert re.search(opened.new, "layers/attention/q/lora/a") and not re.search(opened.new, "layers/mlp/up")


def test_rows_for_new_tokens():
    old = np.concatenate([np.full((1000, 2), 1), np.full((1000, 2), 2)]).astype(ml_dtypes.bfloat16)
    grown = grow(2003).forward(old)
    assert grown.dtype == old.dtype and grown.shape == (2003, 2)
    np.testing.assert_array_equal(grown[:2000], old)
    np.testing.assert_array_equal(grown[2000:], 1.5)  # sums in bfloat16 would stop at 256
    assert grow(2000).forward(old) is old and grow(7).forward(old) is old
    with pytest.raises(ValueError, match="which rows were added is not known"):
        grow(2003).inverse(grown)


def test_internvit_of_another_picture_size(tmp_path):
    vision = InternViTConfig(width=16, depth=2, heads=2, mlp=32, image_size=28, patch=14)
    config = dataclasses.replace(sizes(), vision=vision)
    leaves = part_of(config, "vision")
    tensors = official(internvit.table(vision), leaves)
    json = clip_config(vision) | {"qk_normalization": True, "layer_norm_eps": vision.eps}
    write(tmp_path / "same", tensors, json)
    check(config, "vision", "internvit:same", tmp_path, leaves)
    rng = np.random.default_rng(1)
    larger = {"embeddings.position_embedding": rng.normal(size=(1, 17, 16)).astype(np.float32)}
    write(tmp_path / "larger", tensors | larger, json | {"image_size": 56})
    positions = assemble(config, {"vision": "internvit:larger"}, tmp_path).leaves["vision/positions"]
    got = positions.read(slice(None))
    np.testing.assert_array_equal(got[0], larger["embeddings.position_embedding"][0, 0])  # the class token's
    assert got.shape == (5, 16)


@pytest.mark.parametrize("kind, table", [("llama", llama.table), ("internlm2", internlm2.table)])
def test_new_tokens_begin_as_the_mean_of_the_old_ones(tmp_path, kind, table):
    config = sizes()
    rope = dataclasses.replace(config.llm.rope, max_positions=4096)
    config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, rope=rope))
    leaves = part_of(config, "llm")
    mean = leaves["embed"][:OLD_VOCAB].mean(0, dtype=np.float32)
    leaves["embed"][OLD_VOCAB:] = mean
    leaves["head"][:, OLD_VOCAB:] = leaves["head"][:, :OLD_VOCAB].mean(1, dtype=np.float32)[:, None]
    short = leaves | {"embed": leaves["embed"][:OLD_VOCAB], "head": leaves["head"][:, :OLD_VOCAB]}
    write(tmp_path / kind, official(table(config.llm), short), llm_json(config.llm))
    made = assemble(config, {"llm": f"{kind}:{kind}"}, tmp_path)
    for path, leaf in made.leaves.items():
        want = leaves[path.removeprefix("llm/")]
        np.testing.assert_allclose(leaf.read(slice(None)), want, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_connector_of_llava(tmp_path, layout):
    config = sizes()
    leaves = part_of(config, "bridge")
    tensors = official(bridge.table(config.bridge), leaves)
    if layout == "original":
        tensors = {f"model.mm_projector.{key}": x for key, x in tensors.items()}
    else:
        number = {"0": "1", "2": "2"}
        tensors = {
            f"multi_modal_projector.linear_{number[key[0]]}.{key[2:]}": x for key, x in tensors.items()
        }
    rest = {"language_model.lm_head.weight": np.zeros((3, 2), np.float32)}
    write(tmp_path / "llava", tensors | rest)
    check(config, "bridge", "llava:llava", tmp_path, leaves)


@pytest.fixture(scope="module")
def sighted():
    """A model with both decoders that see, and their random leaves."""
    config = sizes(**small_decoders.DECODERS)
    parts = ("decoders/grounding_dino", "decoders/unipose")
    return config, {part: part_of(config, part) for part in parts}


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
def test_public_grounding_dino(tmp_path, sighted, packed):
    config, part = sighted[0], "decoders/grounding_dino"
    decoder, leaves = config.decoders["grounding_dino"], sighted[1][part]
    known = {path: x for path, x in leaves.items() if not path.startswith(grounding_dino.NEW)}
    tensors = official(grounding_dino.table(decoder, public=True, packed=packed), known)
    assert ("model.decoder.layers.0.self_attn.in_proj_weight" in tensors) == packed
    tensors |= {"model.text_backbone.pooler.dense.bias": np.zeros(2, np.float32)}
    write(tmp_path / "dino", tensors)
    made = check(config, part, "grounding_dino:dino", tmp_path, leaves, grounding_dino.NEW)
    assert f"{part}/mask_head/layers/0/kernel" in made.fresh
    with pytest.raises(ConversionError, match=r"missing: model\.level_embed"):
        del tensors["model.level_embed"]
        write(tmp_path / "short", tensors)
        assemble(config, {part: "grounding_dino:short"}, tmp_path)


def test_public_unipose(tmp_path, sighted):
    config, part = sighted[0], "decoders/unipose"
    leaves = sighted[1][part]
    known = {path: x for path, x in leaves.items() if not path.startswith(unipose.NEW)}
    tensors = official(unipose.table(config.decoders["unipose"], public=True), known)
    tensors = {key: x for key, x in tensors.items() if not key.endswith("_index")}
    tensors |= {"clip_model.logit_scale": np.ones((), np.float32), "label_enc.weight": np.ones((3, 2))}
    assert "transformer.encoder.fusion_layers.0.gamma_v" in tensors
    save_torch(tmp_path / "unipose.pth", {f"module.{key}": x for key, x in tensors.items()})
    check(config, part, "unipose:unipose.pth", tmp_path, leaves, unipose.NEW)


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_swin_classifier(tmp_path, sighted, layout):
    config, part = sighted[0], "decoders/unipose/backbone"
    sizes = config.decoders["unipose"].backbone
    leaves = {
        path.removeprefix("backbone/"): x
        for path, x in sighted[1]["decoders/unipose"].items()
        if path.startswith("backbone/")
    }
    new = tuple(f"stages/{stage}/norm/" for stage in range(4))
    known = {path: x for path, x in leaves.items() if not path.startswith(new)}
    if layout == "original":
        tensors = official(swin.original_table(sizes), known)
        tensors = {key: x for key, x in tensors.items() if not key.endswith("_index")}
        tensors |= {"head.bias": np.zeros(2, np.float32), "layers.0.blocks.1.attn_mask": np.zeros(2)}
        save_torch(tmp_path / "swin", tensors)
    else:
        tensors = official(swin.transformers_table(sizes), known)
        tensors = {f"swin.{key}": x for key, x in tensors.items()}
        write(tmp_path / "swin", tensors | {"classifier.bias": np.zeros(2, np.float32)})
    check(config, part, "swin:swin", tmp_path, leaves, new)


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_pipeline_of_diffusers(tmp_path, old):
    fields = small_painters.DECODERS["stable_diffusion"]
    text = fields["text"] | {"start": 664, "end": 665}  # as CLIP's tokenizer has them, at the end
    config = sizes(stable_diffusion=fields | {"text": text})
    part = "decoders/stable_diffusion"
    leaves = part_of(config, part)
    model = jax.eval_shape(
        lambda: StableDiffusion(
            config.decoders["stable_diffusion"], link_width=config.llm.width, rngs=Rngs(0)
        )
    )
    _, treedef = flatten_paths(model)
    diffusers.save_pipeline(jax.tree.unflatten(treedef, list(leaves.values())), tmp_path / "sd")
    if old:
        rename_attention(tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors")
    check(config, part, "diffusers:sd", tmp_path, leaves, ("mapper/",))


def rename_attention(file: pathlib.Path):
    from safetensors.numpy import load_file

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, x in load_file(file).items():
        for ours, theirs in old.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        tensors[name] = x
    save_file(tensors, file)


def test_assembled_parts_start_a_model(tmp_path, monkeypatch):
    """Parts from a home and from another run; what neither has begins random, by the printed pattern."""
    config = sizes()
    leaves = part_of(config, "vision")
    write(tmp_path / "clip", official(clip.table(config.vision), leaves), clip_config(config.vision))
    with weights_folder(tmp_path / "first", assemble(config, {"vision": "clip:clip"}, tmp_path).leaves):
        pass
    made = assemble(config, {"trunk": "ours:first"}, tmp_path, "bfloat16")
    with weights_folder(tmp_path / "second", made.leaves):
        pass
    assert made.fresh_pattern() == "^(bridge|llm|queries|regions)(/|$)"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    model = abstract(config)
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), model)
    loaded = load_weights(tmp_path / "second", model, made.fresh_pattern())
    got = loaded.vision.class_token[...]
    np.testing.assert_allclose(got, leaves["class_token"], rtol=1e-2)
    with pytest.raises(ConversionError) as error:
        assemble(config, {"vision": "clip:clip", "trunk": "ours:first", "bridge": "llava:no"}, tmp_path)
    assert "another part has filled vision/" in str(error.value)
    assert "does not exist" in str(error.value)
    opened, there = [], Source.open
    monkeypatch.setattr(Source, "open", lambda folder: opened.append(folder) or there(tmp_path / "first"))
    assert assemble(config, {"trunk": "ours:gs://bucket/run"}, tmp_path).leaves.keys() == made.leaves.keys()
    assert opened == ["gs://bucket/run"]
    with pytest.raises(ConversionError, match=r"vision = .*: gs://bucket/clip is in a bucket"):
        assemble(config, {"vision": "clip:gs://bucket/clip"}, tmp_path)
    with pytest.raises(ConversionError, match="gs://bucket/second is in a bucket"):
        weights_folder("gs://bucket/second", {}).__enter__()
    with pytest.raises(ConversionError, match="no home 'wheel'"):
        assemble(config, {"vision": "wheel:clip"}, tmp_path)
    with pytest.raises(ConversionError, match="no part 'wing'"):
        assemble(config, {"wing": "clip:clip"}, tmp_path)
