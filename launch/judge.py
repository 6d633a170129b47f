# SPDX-License-Identifier: Apache-2.0
"""A judge of pictures of synthetic scenes: it knows their colours and the silhouettes of their shapes."""

import functools

import numpy as np

from data_pipelines.synthetic.render import render
from data_pipelines.synthetic.scene import BACKGROUNDS, COLOURS, RADIUS, SHAPES, Scene, Thing
from vllm2_jax.evals.paint import Judge, centred

_ANGLES = (-0.3, -0.15, 0.0, 0.15, 0.3)  # scenes turn their shapes by up to 0.3 radians


@functools.cache
def scene_judge(size: int) -> Judge:
    """For pictures of `size` pixels; silhouettes of every shape in all sizes, at several angles."""
    names, silhouettes = [], []
    for kind in SHAPES:
        for radius in RADIUS:
            for angle in _ANGLES:
                names.append(kind)
                silhouettes.append(centred(_silhouette(Thing(kind, "black", radius, 0.5, 0.5, angle), size)))
    levels = np.array(BACKGROUNDS)
    return Judge(COLOURS, tuple(names), np.stack(silhouettes), (levels.min(0), levels.max(0)))


def _silhouette(thing: Thing, size: int) -> np.ndarray:
    """Share of each pixel that the thing covers."""
    ground = (BACKGROUNDS[0], BACKGROUNDS[0])
    picture = render(Scene((thing,), ground), size).image.astype(np.float32)
    full = np.linalg.norm(np.subtract(COLOURS[thing.colour], ground[0]))
    return np.clip(np.linalg.norm(picture - ground[0], axis=-1) / full, 0, 1)
