# SPDX-License-Identifier: Apache-2.0
"""Objects from marks: drawn on COCO's objects, or given by COCO-Interactive."""

import numpy as np
import pytest

from data_pipelines import DATASETS
from data_pipelines.datasets.interactive import _part
from data_pipelines.errors import DataError
from data_pipelines.masks import run_lengths
from data_pipelines.viewing import annotate
from data_pipelines.visual_prompts import SHAPES
from launch.truth import objects_of
from tests.data_pipelines import objects
from vllm2_jax.evals.objects import decode

load = DATASETS["interactive"]
TINY = {"bbox": [0, 36, 2, 2], "segmentation": [[0, 36, 2, 36, 2, 38, 0, 38]]}


@pytest.fixture
def folder(tmp_path):
    objects.save_picture(tmp_path)
    return tmp_path


def options(folder, *more) -> dict:
    content = objects.coco(objects.annotation("horse"), TINY, objects.annotation("dog"), *more)
    return objects.write(folder, content) | {"tile_size": 40}


def lies_on(example, number: int) -> str:
    """The object that a mark lies on, by the colour of the tower's picture."""
    pixels = example.images[0][-1][example.regions[number].astype(bool)].astype(int)
    far = {name: np.abs(pixels - colour).sum(1).min() for name, colour in objects.COLOURS.items()}
    return min(far, key=far.get)


@pytest.mark.parametrize("shape", SHAPES)
def test_marks_links_and_targets_belong_together(folder, shape):
    seen = set()
    for seed in range(8):
        example = load(**options(folder), shapes=(shape,), seed=seed)[0]
        names = [lies_on(example, number) for number in range(len(example.regions))]
        assert len(set(names)) == len(names) > 0  # the tiny object has no mark
        assert example.meta["classes"] == [f"region{n}" for n in range(1, len(names) + 1)]
        for number, name in enumerate(names):
            objects.shows(example, number, name)
        targets = example.targets["grounding_dino"]
        assert targets["labels"].tolist() == list(range(len(names))) and len(targets["boxes"]) == len(names)
        assert example.turns[0][1].count("<region>") == len(names)
        assert example.turns[1][1].count("[DET]") == len(names)
        assert example.regions.shape[1:] == (40, 40) and example.images[0].shape == (1, 40, 40, 3)
        seen.add(tuple(names))
    assert {("horse", "dog"), ("dog", "horse")} <= seen
    objects.same(load(**options(folder), seed=3)[0], load(**options(folder), seed=3)[0])


def test_in_tests(folder):
    source = load(**options(folder), test=True)
    example = source[0]
    objects.same(example, source[0])
    assert example.turns[0][1] == (
        "<image>\nSegment the objects indicated by <reg>region1<region></reg>, <reg>region2<region></reg>."
    )
    links = ", ".join(f"region{n}[DET]{objects.COUNTS_TEXT}" for n in (1, 2))
    assert example.turns[1][1] == f"The masks: {links}."
    truth = objects_of(example, "grounding_dino")
    assert truth.labels.tolist() == ["region1", "region2"] and truth.size == (40, 80)
    for number, name in enumerate([lies_on(example, 0), lies_on(example, 1)]):
        np.testing.assert_array_equal(decode(truth.masks[number]), objects.mask(name))
        assert truth.boxes[number].tolist() == list(objects.BOXES[name])


def test_the_shorter_side_has_to_exceed_four_pixels(folder):
    """The view is twice as large as the picture."""
    thin = [
        {"bbox": [40, 4, w, 30], "segmentation": [[40, 4, 40 + w, 4, 40 + w, 34, 40, 34]]} for w in (2, 3)
    ]
    sources = [
        load(**objects.write(folder, objects.coco(one)) | {"tile_size": 40}, test=True) for one in thin
    ]
    with pytest.raises(DataError, match="no object is large enough for a mark"):
        sources[0][0]
    assert sources[1][0].regions.any()


def test_boxes_are_those_of_the_file(folder):
    wide = objects.annotation("horse") | {"bbox": [0, 8, 40, 22]}
    example = load(**objects.write(folder, objects.coco(wide)), test=True)[0]
    np.testing.assert_allclose(example.targets["grounding_dino"]["boxes"], [[0.25, 19 / 40, 0.5, 22 / 40]])


def test_objects_keep_what_belongs_to_them():
    masks = np.zeros((3, 9, 9), bool)
    masks[0, :1], masks[1, :2], masks[2, :3] = True, True, True
    part = _part(annotate(np.zeros((9, 9, 3), np.uint8), masks=masks), [2, 0])
    assert part.kept.tolist() == [2, 0] and part.area.tolist() == [27, 9]
    assert part.boxes.tolist() == [[0, 0, 9, 3], [0, 0, 9, 1]] and part.masks.sum((1, 2)).tolist() == [27, 9]


def test_shapes_are_drawn(folder):
    source = [load(**options(folder), shapes=("point", "mask"), seed=seed)[0] for seed in range(6)]
    assert {bool(region.sum() > 20) for example in source for region in example.regions} == {True, False}


def test_marks_of_tests_follow_from_seed_and_picture(folder):
    content = objects.coco(objects.annotation("horse"))
    more = [objects.coco(objects.annotation("horse"), image={"id": number}) for number in (4, 5)]
    content["images"] += [entry["images"][0] for entry in more]
    content["annotations"].append(content["annotations"][0] | {"image_id": 4})
    sources = [load(**objects.write(folder, content), test=True, shapes=("point",), seed=s) for s in (0, 1)]
    assert [len(source) for source in sources] == [2, 2]  # the third picture has no objects
    marks = [source[index].regions.tobytes() for source in sources for index in range(2)]
    assert len(set(marks)) == 4


def test_regions_need_the_whole_tile(folder):
    assert load(**options(folder), image_mode="pad").viewing.tiling.mode == "stretch"


def test_wordings_are_drawn(folder):
    objects.draws_wordings(load, options(folder), folder, interactive="{region}", outlined="{link}")


def test_at_most(folder):
    example = load(**options(folder), most=1)[0]
    assert len(example.regions) == 1 and len(example.targets["grounding_dino"]["boxes"]) == 1


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (TINY, "image 3: no object is large enough for a mark at 40 pixels. Remedy"),
        ({"bbox": [4, 8, 20, 22]}, "annotation 100, field 'segmentation': the field is missing"),
        (
            {"bbox": [4, 8, 20, 22], "segmentation": {"size": [9, 9], "counts": "00"}},
            r"annotation 100, field 'segmentation': run lengths are for \[9, 9\]",
        ),
    ],
)
def test_bad_objects(folder, annotation, message):
    source = load(**objects.write(folder, objects.coco(annotation)) | {"tile_size": 40})
    with pytest.raises(DataError, match=message) as found:
        source[0]
    assert "records.json" in str(found.value)


def given(folder, change=None, **fields) -> dict:
    marks = {name: run_lengths(objects.mask(name) & (np.arange(80) % 3 == 0)) for name in ("dog", "horse")}
    empty = run_lengths(np.zeros((40, 80), bool))
    anns = [
        {"segmentation": objects.polygon(name), "scribble_visual_prompt_mask": marks[name], "area": 1}
        for name in ("dog", "horse")
    ]
    for annotation in anns:
        annotation["box_visual_prompt_mask"] = annotation["segmentation"]
    anns.insert(0, anns[0] | {"scribble_visual_prompt_mask": empty})
    info = {"file_name": "a.png", "height": 40, "width": 80} | (change or {})
    return objects.write(folder, [{"image_info": info, "img_id": 9, "anns": anns} | fields])


def test_given_marks(folder):
    example = load(**given(folder), given="scribble", test=True)[0]
    assert [lies_on(example, number) for number in range(2)] == ["dog", "horse"]
    objects.shows(example, 0, "dog")
    truth = objects_of(example, "grounding_dino")
    np.testing.assert_array_equal(decode(truth.masks[1]), objects.mask("horse"))
    assert example.meta["truth"]["segmentations"] == [objects.polygon("dog"), objects.polygon("horse")]
    boxed = load(**given(folder), given="box", test=True)[0]
    assert [lies_on(boxed, number) for number in range(3)] == ["dog", "dog", "horse"]
    assert boxed.regions[1].sum() > 1.5 * example.regions[0].sum()
    load(**given(folder), given="scribble", most=2, test=True)[0]
    with pytest.raises(DataError, match="2 marks where there may be 1 to 1"):
        load(**given(folder), given="scribble", most=1, test=True)[0]
    assert example.record == "9" and truth.labels.tolist() == ["region1", "region2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"change": {"file_name": "b.png"}}, "b.png, record 9, field 'file_name': no such picture"),
        ({"change": {"height": 41}}, r"record 9: the picture is \(40, 80\)"),
        ({"image_info": 3}, "record 0, field 'image_info': 3 is a int"),
        ({"anns": []}, "record 9, field 'anns': 0 marks where there may be 1 to 20"),
        (
            {"anns": [{"segmentation": []}]},
            "record 9, annotation 0, field 'scribble_visual_prompt_mask': the field is missing",
        ),
        (
            {"anns": [{"scribble_visual_prompt_mask": {"size": [4, 4], "counts": [16]}}]},
            r"record 9, annotation 0, field 'scribble_visual_prompt_mask': run lengths are for \[4, 4\]",
        ),
    ],
)
def test_bad_given_marks(folder, options, message):
    source = load(**given(folder, **options), given="scribble", test=True)
    with pytest.raises(DataError, match=message) as found:
        source[0]
    assert found.value.remedy


def test_unknown_options(folder):
    with pytest.raises(ValueError, match="unknown shapes \\['star'\\], there are point"):
        load(**options(folder), shapes=("star",))
    with pytest.raises(ValueError, match="given='circle': COCO-Interactive is for tests and has point"):
        load(**options(folder), given="circle", test=True)
