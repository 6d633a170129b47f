# SPDX-License-Identifier: Apache-2.0
"""The pose decoder of a golden folder, and how it is run."""

import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens, unipose_backbone, unipose_criterion, unipose_inputs
from tests.parity.unipose_inputs import Sample
from tests.parity.weights import load
from vllm2_jax.batch import Links
from vllm2_jax.convert import unipose as convert
from vllm2_jax.decoders.denoising import Draws
from vllm2_jax.decoders.grounding_dino.outputs import ABSENT
from vllm2_jax.decoders.unipose.config import UniPoseConfig
from vllm2_jax.decoders.unipose.model import UniPose
from vllm2_jax.decoders.unipose.outputs import Outputs
from vllm2_jax.decoders.unipose.targets import Truth, read_picture
from vllm2_jax.nn.paths import flatten_paths
from vllm2_jax.nn.rngs import Rngs
from vllm2_jax.vision.pixels import frame

Maps = tuple[jax.Array, ...]


def config(folder: pathlib.Path, suffix: str, *, faithful: bool = True) -> UniPoseConfig:
    """Sizes of the golden set; `suffix` says how many instances."""
    stored = goldens.config(folder)
    c = stored["config"]
    return UniPoseConfig(
        backbone=unipose_backbone.config(folder),
        width=c["hidden_dim"],
        queries=c["num_queries"],
        instances=stored["groups"]["small" if suffix else "official"],
        heads=c["nheads"],
        mlp=c["dim_feedforward"],
        points=c["dec_n_points"],
        encoder_layers=c["enc_layers"],
        box_layers=c["num_box_decoder_layers"],
        keypoint_layers=c["dec_layers"] - c["num_box_decoder_layers"],
        temperature=float(c["pe_temperatureH"]),
        drop_path=c["fusion_droppath"],
        faithful=faithful,
        criterion=unipose_criterion.config(folder),
        dtype="float32",
    )


def build(folder: pathlib.Path, config: UniPoseConfig) -> UniPose:
    """The golden decoder in float32; NaN where the folder has no weights (of the backbone)."""
    width = goldens.config(folder)["config"]["l_hidden_size"]
    tensors = goldens.weights(folder, "weights")
    leaves, treedef = flatten_paths(jax.eval_shape(lambda: UniPose(config, link_width=width, rngs=Rngs(0))))
    whole = has_backbone(tensors)
    there = {path: leaf for path, leaf in leaves.items() if whole or not path.startswith("backbone/")}
    loaded = load(tensors, convert.table(config), there)
    nothing = {path: jnp.full(leaf.shape, jnp.nan, leaf.dtype) for path, leaf in leaves.items()}
    return jax.tree.unflatten(treedef, [(nothing | loaded)[path] for path in leaves])


def has_backbone(tensors: Iterable[str]) -> bool:
    """Whether a set of weights is whole; the committed part is not."""
    return any(name.startswith("backbone.") for name in tensors)


def inputs(folder: pathlib.Path, pictures: list[Sample]) -> tuple[Links, dict[str, jax.Array], Maps | None]:
    """Links, targets, and the backbone's maps where it cannot run itself."""
    links = unipose_inputs.links(folder, unipose_inputs.places(pictures))
    arrays, found = unipose_inputs.targets(folder, pictures), None
    if not has_backbone(goldens.weights(folder, "weights")):
        data = goldens.arrays(folder, "backbone")
        count = len(goldens.config(folder)["config"]["return_interm_indices"])
        found = tuple(jnp.asarray(maps(data[f"backbone.feat{i}"])) for i in range(count))
    return links, arrays, found


def forward(
    model: UniPose,
    links: Links,
    arrays: dict[str, jax.Array],
    features: Maps | None,
    truth: Truth | None = None,
    draws: Draws | None = None,
) -> Outputs:
    """All predictions, from pictures or from the maps that a backbone made of them."""
    picture = read_picture(arrays)
    if features is None:
        return model.forward(links, picture, truth=truth, draws=draws)
    _, inside = frame(picture.image, picture.size, jnp.float32)
    wanted = picture.keypoint_ids.shape[1]
    return model.look(links, wanted, features, inside, truth=truth, draws=draws)


def maps(x: np.ndarray) -> np.ndarray:
    """Feature maps with channels last."""
    return x.transpose(0, 2, 3, 1)


def logits(name: str, got: np.ndarray, want: np.ndarray) -> list[Case]:
    """Class logits: the official -inf stands for our `ABSENT`; either side may have more free places."""
    places = max(got.shape[-1], want.shape[-1])

    def widen(x: np.ndarray) -> np.ndarray:
        more = [(0, 0)] * (x.ndim - 1) + [(0, places - x.shape[-1])]
        return np.pad(np.where(np.isfinite(x), x, ABSENT), more, constant_values=ABSENT).astype(np.float32)

    got, want = widen(got), widen(want)
    there = want != ABSENT
    return [
        (f"{name}: which", got != ABSENT, there),
        (name, np.where(there, got, 0), np.where(there, want, 0)),
    ]
