# SPDX-License-Identifier: Apache-2.0
"""A picture with two objects on disk, in the layouts of the readers; and what every such example fulfils."""

import json
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.example import Example
from data_pipelines.masks import mask_boxes
from vllm2_jax.tokens import QueryCounts

HEIGHT, WIDTH, TILE = 40, 80, 20
COUNTS_TEXT = "[EMB][EMB2][EMB3][EMB4]"

# Left, top, right, bottom; the objects are filled with their colour, the rest is grey noise.
BOXES = {"horse": (4, 8, 24, 30), "dog": (50, 2, 74, 20)}
COLOURS = {"horse": (250, 0, 0), "dog": (0, 0, 250)}


def polygon(name: str) -> list[list[int]]:
    x0, y0, x1, y1 = BOXES[name]
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def mask(name: str) -> np.ndarray:
    x0, y0, x1, y1 = BOXES[name]
    filled = np.zeros((HEIGHT, WIDTH), bool)
    filled[y0:y1, x0:x1] = True
    return filled


def annotation(name: str, **more) -> dict:
    x0, y0, x1, y1 = BOXES[name]
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": polygon(name), **more}


def coco(*annotations: dict, image: dict | None = None, **more) -> dict:
    entry = {"id": 3, "file_name": "a.png", "height": HEIGHT, "width": WIDTH, **(image or {})}
    numbered = [{"id": 100 + i, "image_id": 3, **a} for i, a in enumerate(annotations)]
    return {"images": [entry], "annotations": numbered, **more}


def picture() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(100, 140, (HEIGHT, WIDTH, 1), dtype=np.uint8).repeat(3, 2)
    for name, colour in COLOURS.items():
        pixels[mask(name)] = colour
    return pixels


def save_picture(folder: pathlib.Path, name: str = "a.png") -> None:
    Image.fromarray(picture()).save(folder / name)


def save_mask(path: pathlib.Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


def write(folder: pathlib.Path, content, name: str = "records.json") -> dict:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(record) + "\n" for record in content))
    else:
        path.write_text(json.dumps(content))
    return {"annotations": str(path), "image_root": str(folder), "tile_size": TILE, "decoder_size": 160}


def save_ramp(path: pathlib.Path) -> None:
    """A picture that grows brighter to the right: column x is 40 + x."""
    grey = np.arange(40, 40 + WIDTH, dtype=np.uint8)
    Image.fromarray(np.tile(grey[None, :, None], (HEIGHT, 1, 3))).save(path)


def towers_see_all(examples: list[Example]) -> None:
    """Of a ramp, tile after tile: the tower sees all of it, mirrored where the decoder's view is."""
    mirrored = set()
    for example in examples:
        view = example.targets["grounding_dino"]["image"].mean((0, 2))
        whole = 40 + (np.arange(TILE) + 0.5) * WIDTH / TILE - 0.5
        mirrored.add(bool(view[0] > view[-1]))
        wanted = whole[::-1] if view[0] > view[-1] else whole
        np.testing.assert_allclose(example.images[0][-1].mean((0, 2)), wanted, atol=2)
    assert mirrored == {False, True}


def draws_wordings(load, options: dict, folder: pathlib.Path, **kinds: str) -> None:
    """Training draws question and answer from the user's file; `kinds` are its keys and their slots.

    The links have the queries that were asked for.
    """
    path = folder / "wordings.json"
    path.write_text(json.dumps({kind: [f"A {slots}", f"B {slots}"] for kind, slots in kinds.items()}))
    more = {"templates": str(path), "counts": QueryCounts(perception=2)}
    examples = [load(**options, **more, seed=seed)[0] for seed in range(24)]
    said = [[text.removeprefix("<image>\n") for _, text in example.turns] for example in examples]
    assert {asked[:2] + told[:2] for asked, told in said} == {"A A ", "A B ", "B A ", "B B "}
    assert all("[EMB][EMB2]" in told and "[EMB3]" not in told for _, told in said)


def shows(example: Example, number: int, name: str) -> None:
    """The target's mask and box lie on the object of this name in the decoder's picture."""
    targets = example.targets["grounding_dino"]
    height, width = targets["image"].shape[:2]
    inside = targets["masks"][number]
    pixels = targets["image"][inside].astype(int)
    # Interpolation blurs the border of the object.
    assert np.median(np.abs(pixels - COLOURS[name]).sum(1)) < 20
    other = next(key for key in COLOURS if key != name)
    assert np.abs(pixels - COLOURS[other]).sum(1).min() > 100
    x0, y0, x1, y1 = mask_boxes(inside[None])[0]
    around = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
    np.testing.assert_allclose(targets["boxes"][number], around, atol=1.01 / min(height, width))


def same(a: Example, b: Example) -> None:
    """Both examples are equal in everything that training sees."""
    assert a.turns == b.turns
    for x, y in zip(a.images, b.images, strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a.regions, b.regions)
    assert a.targets.keys() == b.targets.keys()
    for decoder, targets in a.targets.items():
        for key, value in targets.items():
            np.testing.assert_array_equal(value, b.targets[decoder][key], err_msg=key)
