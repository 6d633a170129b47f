# SPDX-License-Identifier: Apache-2.0
"""Counting objects of a class, asked for by name or by an example."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines import DATASETS
from data_pipelines.errors import DataError
from launch.truth import objects_of
from tests.data_pipelines import objects
from vllm2_jax.evals import EVALS
from vllm2_jax.evals.objects import Detections

load = DATASETS["counting"]
CATEGORIES = [{"id": 1, "name": "Cup "}, {"id": 2, "name": "plate"}, {"id": 3, "name": "fork"}]


def cup(number: int, category: int = 1, **more) -> dict:
    return {"bbox": [2 + 13 * number, 10, 9, 12], "category_id": category, **more}


@pytest.fixture
def folder(tmp_path):
    pixels = np.full((40, 80, 3), 120, np.uint8)
    for number in range(6):
        x, y, w, h = cup(number)["bbox"]
        pixels[y : y + h, x : x + w] = (250, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path


def options(folder, *more, **image) -> dict:
    content = objects.coco(
        *[cup(n) for n in range(4)], cup(4, 2), cup(5, 3), *more, categories=CATEGORIES, image=image
    )
    return objects.write(folder, content)


def test_in_tests_every_class_is_asked_for(folder):
    source = load(**options(folder), test=True)
    assert [source[i].meta["classes"] for i in range(len(source))] == [["cup"], ["plate"], ["fork"]]
    example = source[0]
    assert example.turns == [
        ("human", "<image>\nHow many cup are there?"),
        ("gpt", f"Here they are: cup[DET]{objects.COUNTS_TEXT}. That makes 4."),
    ]
    assert example.targets["grounding_dino"]["labels"].tolist() == [0] * 4  # one link for all
    truth = objects_of(example, "grounding_dino")
    assert truth.boxes.tolist() == [[2 + 13 * n, 10, 11 + 13 * n, 22] for n in range(4)]
    np.testing.assert_allclose(
        example.targets["grounding_dino"]["boxes"][0], [6.5 / 80, 16 / 40, 9 / 80, 12 / 40], rtol=1e-5
    )
    found = Detections(truth.boxes[:3], truth.labels[:3], np.ones(3))
    assert EVALS["count"]([found], [truth])["count/MAE"] == 1


def test_the_number_is_that_of_the_view(folder):
    numbers = set()
    for seed in range(40):
        example = load(**options(folder), seed=seed)[0]
        targets = example.targets["grounding_dino"]
        n = len(targets["boxes"])
        assert n == example.meta["count"] > 0 and str(n) in example.turns[1][1].rpartition("]")[2]
        height, width = targets["image"].shape[:2]
        for x, y, _, _ in targets["boxes"]:
            assert targets["image"][int(y * height), int(x * width), 0] > 200
        # The tower sees the same part as the decoder.
        tower = example.images[0][-1].reshape(-1, 3).mean(0)
        np.testing.assert_allclose(tower, targets["image"].reshape(-1, 3).mean(0), atol=6)
        numbers.add((example.meta["classes"][0], n))
    assert {("cup", 4), ("plate", 1), ("fork", 1)} <= numbers and {("cup", 2), ("cup", 3)} & numbers
    objects.same(load(**options(folder), seed=1)[0], load(**options(folder), seed=1)[0])


def test_examples(folder):
    marked = set()
    for seed in range(20):
        example = load(**options(folder) | {"tile_size": 40}, by="example", seed=seed)[0]
        assert example.turns[0][1].count("<reg>region1<region></reg>") == 1
        assert "region1[DET]" in example.turns[1][1] and example.meta["classes"] == ["region1"]
        inside = example.images[0][-1][example.regions[0].astype(bool)]
        assert np.median(inside[:, 0]) > 180 and np.median(inside[:, 1]) < 60
        centre = (example.regions[0].any(0).nonzero()[0].mean() + 0.5) / 40
        marked.add(int(np.abs(example.targets["grounding_dino"]["boxes"][:, 0] - centre).argmin()))
    assert len(marked) > 1  # not always the first
    ways = {len(load(**options(folder), by="mixed", seed=seed)[0].regions) for seed in range(12)}
    assert ways == {0, 1}
    assert len(load(**options(folder), by="mixed", test=True)[0].regions) == 0


def test_regions_need_the_whole_tile(folder):
    sources = {by: load(**options(folder), by=by, image_mode="pad") for by in ("name", "example", "mixed")}
    modes = {by: source.viewing.tiling.mode for by, source in sources.items()}
    assert modes == {"name": "pad", "example": "stretch", "mixed": "stretch"}


@pytest.mark.parametrize("by", ["name", "example"])
def test_wordings_are_drawn(folder, by):
    slots = {"counting": "{classes}", "counting_alike": "{region}", "counted": "{link} {n}"}
    objects.draws_wordings(load, options(folder) | {"by": by}, folder, **slots)


@pytest.mark.parametrize(("clean", "name"), [(True, "bow weapon"), (False, "bow_(weapon)")])
def test_names_of_lvis(folder, clean, name):
    content = objects.coco(cup(0), categories=[{"id": 1, "name": "Bow_(weapon)"}])
    source = load(**objects.write(folder, content), clean_names=clean, test=True)
    assert source[0].meta["classes"] == [name] and f"many {name} are" in source[0].turns[0][1]


def test_unknown_numbers_are_not_asked_for(folder):
    crowd = cup(4, 2, iscrowd=1)
    source = load(**options(folder, crowd, not_exhaustive_category_ids=[3]), test=True)
    assert [source[i].meta["classes"] for i in range(len(source))] == [["cup"]]
    few = load(**options(folder), objects=3)
    assert {few[0].meta["classes"][0]} <= {"plate", "fork"}
    assert {load(**options(folder), objects=4, seed=s)[0].meta["classes"][0] for s in range(12)} >= {"cup"}
    assert len(load(**options(folder, crowd, not_exhaustive_category_ids=[3]), objects=3)) == 0


def test_bad_records(folder):
    with pytest.raises(DataError, match=r"annotation 106, field 'category_id': 9 is none of the file's"):
        load(**options(folder, cup(0, 9)))
    with pytest.raises(DataError, match=r"b.png, record image 3, field 'file_name': no such picture"):
        load(**options(folder, file_name="b.png"))[0]
    with pytest.raises(DataError, match=r"record image 3: the picture is \(40, 80\)"):
        load(**options(folder, width=81))[0]
    with pytest.raises(ValueError, match="unknown way 'eye' to ask, there are name, example, mixed"):
        load(**options(folder), by="eye")
