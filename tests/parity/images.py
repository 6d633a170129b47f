# SPDX-License-Identifier: Apache-2.0
"""Golden comparisons of picture preprocessing: preprocess.npz."""

import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from data_pipelines import images, masks
from vllm2_jax.vision.pixels import CLIP_MEAN, CLIP_STD, normalize


def cases(goldens: pathlib.Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, ours, official): tiles and masks exactly, normalised pixels (channels first) as floats."""
    data = np.load(goldens / "preprocess.npz")
    for key in data.files:
        number, _, what = key.partition("/")
        if not what:
            continue
        image, want = data[f"{number}/image"], data[key]
        size = want.shape[-2]

        def pixels(tile: np.ndarray) -> np.ndarray:
            """What the model makes of a tile."""
            return np.asarray(normalize(jnp.asarray(tile), jnp.float32)).transpose(2, 0, 1)

        if what.startswith("anyres") and what.endswith("_tiles"):
            yield key, images.anyres(image, size, int(what[6:-6])), want
        elif what.startswith("anyres") and what.endswith("_tile0_pixel_values"):
            yield key, pixels(images.anyres(image, size, int(what[6:-19]))[0]), want
        elif what == "pad_square":
            yield key, images.pad_square(image), want
        elif what == "pad_pixel_values":
            yield key, pixels(images.Tiling("pad", size)(image)[0]), want
        elif what == "square_mode_pixel_values":
            yield key, pixels(images.Tiling("square", size)(image)[0]), want
        elif what == "region_branch_pixel_values":
            # Not rounded to a tile's uint8, and the model takes floats to be normalised already.
            floats = (images.stretch(image, size) / 255 - CLIP_MEAN) / CLIP_STD
            yield key, floats.transpose(2, 0, 1), want
        elif what != "image":
            raise ValueError(f"preprocess.npz holds {key}, which no comparison here reads")
    for key in ("grid_max4", "grid_max6"):
        # The grid choice was recorded for tiles of 336 pixels.
        got = [images.grid(int(w), int(h), 336, int(key[-1])) for w, h in data["grid_sizes_wh"]]
        yield key, np.array(got), data[key]
        order = data[f"ratios_order_{key[-1]}"]
        yield (
            f"{key} candidates",
            np.array(sorted(images.grids(int(key[-1])))),
            np.array(sorted(map(tuple, order))),
        )
    got = np.stack([masks.box_mask(box, *data["boxes_masks"].shape[1:]) for box in data["boxes"]])
    yield "boxes_masks", got, data["boxes_masks"]
    yield "masks_boxes", masks.mask_boxes(got), data["masks_boxes"]
