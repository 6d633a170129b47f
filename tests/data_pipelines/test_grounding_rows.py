# SPDX-License-Identifier: Apache-2.0
"""Every reader for the grounding decoder, as far as a row of a batch: links, regions and targets fit."""

import json

import numpy as np
import pytest

from data_pipelines import DATASETS, show
from data_pipelines.collate import CollateSpec, TaskShape, make_row
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from tests.data_pipelines import objects
from vllm2_jax.batch import REGION

# Loader -> kind of link, its links in all, regions, objects.
EXPECTED = {
    "referring": ("grd", 1, 0, 1),
    "saliency": ("det", 1, 0, 1),
    "semantic": ("seg", 3, 0, 2),
    "interactive": ("det", 2, 2, 2),
    "counting": ("det", 1, 1, 1),
    "in_context": ("det", 1, 2, 1),
    "grounded_captions": ("det", 2, 0, 3),
}


@pytest.fixture
def options(tmp_path):
    """Options of each loader, for files of the picture with a horse and a dog."""
    objects.save_picture(tmp_path)
    for folder in ("masks", "maps"):
        (tmp_path / folder).mkdir()
    objects.save_mask(tmp_path / "masks/a.png", objects.mask("dog").astype(np.uint8))
    objects.save_mask(
        tmp_path / "maps/a.png", (objects.mask("dog") + 2 * objects.mask("horse")).astype(np.uint8)
    )
    (tmp_path / "names.json").write_text(json.dumps(["dog", "horse", "sky"]))
    annotations = [objects.annotation(name, category_id=1) for name in ("horse", "dog")]
    categories = [{"id": 1, "name": "animal"}]
    talk = [{"from": "human", "value": "<image><mask><mask> <image>?"}, {"from": "gpt", "value": "<mask>"}]
    context = {"image": ["a.png"] * 2, "mask": ["masks/a.png"] * 3, "conversations": talk}
    caption = {
        "file_name": "a.png",
        "height": 40,
        "width": 80,
        "boxes": [a["bbox"] for a in annotations],
        "conversation": [
            {"value": "What?"},
            {
                "value": "<p>A dog</p><roi><ground_box></roi>, <p>two</p><roi><ground_box><ground_box></roi>",
                "box_inds": [1, 0, 1],
            },
        ],
    }
    files = {
        "referring": objects.coco(annotations[0], image={"expressions": ["left horse"]}),
        "interactive": objects.coco(*annotations),
        "counting": objects.coco(annotations[0], categories=categories),
        "in_context": [context],
        "grounded_captions": [caption],
    }
    found = {name: objects.write(tmp_path, content, f"{name}.json") for name, content in files.items()}
    found["interactive"] |= {"tile_size": 40, "image_mode": "anyres"}
    found["counting"]["by"] = "example"
    common = {"image_root": str(tmp_path), "tile_size": 20, "decoder_size": 160}
    found["saliency"] = common | {"mask_root": str(tmp_path / "masks")}
    names = {"mask_root": str(tmp_path / "maps"), "names": str(tmp_path / "names.json")}
    found["semantic"] = common | names
    return found


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_holds_the_example(options, name, test):
    kind, links, regions, count = EXPECTED[name]
    example = DATASETS[name](**options[name], test=test)[0]
    if not test and name == "semantic":
        links, count = len(example.meta["classes"]), len(example.targets["grounding_dino"]["boxes"])
    if not test and name == "interactive":
        links = regions = count = len(example.regions)
    spec = CollateSpec(length=600, tile_size=options[name]["tile_size"], tokens_per_tile=4)
    shape = TaskShape(
        rows=1,
        decoder="grounding_dino",
        tiles=8,
        regions=2,
        links={kind: 4},
        capacities={"size": 192, "objects": 4},
    )
    row = make_row(example, load_tokenizer(TINY_TOKENIZER), spec, shape)
    assert row.link_valid.sum() == links == len(example.meta["classes"])
    assert (row.source == REGION).sum() == regions and (row.masks[:regions].any((1, 2))).all()
    targets = row.targets["grounding_dino"]
    assert targets["valid"].sum() == count and (targets["labels"][:count] < links).all()
    given = example.targets["grounding_dino"]
    assert targets["mask_valid"].sum() == (count if "masks" in given else 0)
    assert (row.labels >= 0).any() and row.counters["dropped_links"] == 0
    # The contact sheet names every target.
    assert show.sheet([example]).width > 300
    assert example.source == name and ("truth" in example.meta) == test
