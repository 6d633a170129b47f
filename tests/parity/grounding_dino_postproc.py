# SPDX-License-Identifier: Apache-2.0
"""Answers of the grounding decoder in the original picture: postproc.npz."""

import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from tests.parity import Case, goldens
from tests.parity.metrics import overlaps, same_ranking
from vllm2_jax.evals import postprocess
from vllm2_jax.ops.select import best_pairs


def cases(folder: pathlib.Path) -> Iterator[Case]:
    data = goldens.arrays(folder, "postproc")
    logits = data["in/logits"][..., : int(data["num_classes"])]
    ranking = [np.asarray(x) for x in best_pairs(jnp.asarray(logits), logits[0].size)]
    for i in range(len(logits)):
        inside, size = ((int(h), int(w)) for h, w, _ in (data["image_sizes"][i], data["ori_sizes"][i]))
        scores, queries, labels = (x[i] for x in ranking)
        masks, boxes = data["in/pred_masks"][i], postprocess.boxes_in_pixels(data["in/pred_boxes"][i], size)
        found = {"scores": scores, "labels": labels, "boxes": boxes[queries]}
        yield from same_ranking(f"det/{i}", found, data, int(data["topk"]))
        found["masks"] = postprocess.instance_masks(masks[queries], inside, size)
        yield from same_ranking(f"instseg/{i}", found, data, int(data["topk"]))
        maps = np.einsum("qk,qhw->khw", 1 / (1 + np.exp(-logits[i])), 1 / (1 + np.exp(-masks)))
        for order in ("before", "after"):  # resized before or after the sum over queries: the same
            want = data[f"semseg/{order}/{i}"]
            yield f"semseg {order} {i}", postprocess.class_map(maps, inside, size), want
    found = [data[f"mask_iou/{key}"] for key in ("iou", "inter", "union")]
    yield from overlaps(data["mask_iou/pred"], data["mask_iou/gt"], found)
