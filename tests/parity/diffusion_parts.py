# SPDX-License-Identifier: Apache-2.0
"""Autoencoder, text encoder and mapper; every kind of norm on inputs so small that its epsilon shows."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.diffusion import build, find_links, info, nchw, nhwc
from vllm2_jax.decoders.diffusion.mapper import Mapper
from vllm2_jax.decoders.diffusion.text import CLIPText
from vllm2_jax.decoders.diffusion.vae import VAE
from vllm2_jax.nn.stack import unstack


def cases(folder: pathlib.Path) -> Iterator[Case]:
    painter = build(folder, edits=True)
    decodes = "decoder.conv_out.weight" in goldens.weights(folder, "vae")
    with jax.default_matmul_precision("highest"):
        yield from vae_cases(painter.vae, goldens.arrays(folder, "vae"), decodes=decodes)
        yield from text_cases(painter.text, goldens.arrays(folder, "text"))
        yield from mapper_cases(painter.mapper, goldens.arrays(folder, "mapper"), info(folder))
        yield from probe_cases(painter, goldens.arrays(folder, "eps_probe"))


def vae_cases(vae: VAE, data: dict[str, np.ndarray], *, decodes: bool) -> Iterator[Case]:
    """A picture whose sides are no multiple of 4, and random latents (the committed part has no decoder)."""
    image = nhwc(data["image"])
    encoded, moments = jax.jit(lambda vae, image: (vae.encoder(image), vae.encode(image)))(vae, image)
    yield "vae encoder", nchw(encoded), data["encoder_out"]
    mean, logvar = np.split(nchw(moments), 2, axis=1)
    yield "vae mean", mean, data["mean"]
    yield "vae log variance", logvar, data["logvar"]
    if decodes:
        yield "vae picture", nchw(vae.decode(nhwc(data["z"]))), data["decoded"]


def text_cases(text: CLIPText, data: dict[str, np.ndarray]) -> Iterator[Case]:
    """Captions of any length, an empty one and one that was cut."""
    ids = jnp.asarray(data["input_ids"].astype(np.int32))
    layers = tuple(range(text.config.depth + 1))
    states, last = jax.jit(lambda text, ids: (text.hidden_states(ids, layers), text(ids)))(text, ids)
    for i, state in enumerate(states):
        yield f"text hidden state {i}", np.asarray(state), data[f"hidden_{i}"]
    yield "text states", np.asarray(last), data["last_hidden_state"]
    empty = [i for i, caption in enumerate(data["captions"]) if not str(caption).strip()]
    for i in empty:
        yield "text of the empty caption", np.array(text.config.empty), data["input_ids"][i]


def mapper_cases(mapper: Mapper, data: dict[str, np.ndarray], sizes: dict) -> Iterator[Case]:
    """Rows with none, one and two links."""
    found = find_links(data["input_ids"], sizes["gen_id"])
    yield "mapper which columns", found, data["trigger_index"]
    width = sizes["num_embed_tokens"]
    states = np.stack([data["hidden_states"][i, at + 1 : at + 1 + width] for i, at in found])

    @jax.jit
    def run(mapper, states):
        projected = mapper.project(states)
        return projected, mapper.encode(projected), mapper(states)

    projected, memory, text = run(mapper, jnp.asarray(states))
    yield "mapper projection", np.asarray(projected), data["emb_proj"]
    yield "mapper memory", np.asarray(memory), data["encoder_memory"]
    yield "mapper text states", np.asarray(text), data["mapping_feature"]


def probe_cases(painter, data: dict[str, np.ndarray]) -> Iterator[Case]:
    """Parts by official name, fed numbers of about 2e-3."""
    given = {key: nhwc(value) for key, value in data.items() if ":in_" in key}
    found = jax.jit(probe)(painter, given)
    recorded = {key.removesuffix(":out") for key in data if key.endswith(":out")}
    assert recorded == set(found), recorded ^ set(found)
    for name, out in found.items():
        yield f"small inputs, {name}", nchw(out), data[f"{name}:out"]


def probe(painter, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Outputs by official name; inputs are "<name>:in_<argument>"."""
    unet, vae, text, mapper = painter.unet, painter.vae, painter.text, painter.mapper
    attention = unet.down[0].transformers[0]
    first = unstack(text.blocks)[0]

    def given(name: str, key: str = "x") -> jax.Array:
        return inputs[f"{name}:in_{key}"]

    parts = {
        "unet.down_blocks.0.attentions.0": lambda n: attention(given(n), given(n, "c")),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0": lambda n: attention.block(
            given(n), given(n, "c")
        ),
        "unet.down_blocks.0.resnets.0": lambda n: unet.down[0].resnets[0](
            given(n), jax.nn.silu(given(n, "temb"))
        ),
        "unet.conv_norm_out": lambda n: unet.norm_out(given(n)),
        "vae.encoder.down_blocks.0.resnets.0": lambda n: vae.encoder.levels[0].resnets[0](given(n)),
        "vae.encoder.mid_block.attentions.0": lambda n: vae.encoder.middle.attend(given(n)),
        "vae.encoder.conv_norm_out": lambda n: vae.encoder.norm_out(given(n)),
        "vae.decoder.conv_norm_out": lambda n: vae.decoder.norm_out(given(n)),
        "text.layers.0.layer_norm1": lambda n: first.norm1(given(n)),
        "text.final_layer_norm": lambda n: text.norm(given(n)),
        "mapper.encoder": lambda n: mapper.encode(given(n)),
        "mapper.decoder": lambda n: mapper.decode(given(n), given(n, "mem")),
    }
    return {name: run(name) for name, run in parts.items()}
