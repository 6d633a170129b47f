# SPDX-License-Identifier: Apache-2.0
"""Readers of region descriptions and recognition, on files written here."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from configs.mixtures import MIXTURES
from data_pipelines import DATASETS
from data_pipelines.collate import CollateSpec
from data_pipelines.errors import DataError
from data_pipelines.mixture import open_source
from launch.build import fill_root

SIZE = 20  # of a tile; pictures are 40 x 80 pixels, so a tile shows 4 x 2 of them in one
LEFT_HALF = {"bbox": [0, 0, 40, 40], "segmentation": [[0, 0, 40, 0, 40, 40, 0, 40]]}
CORNER = {"bbox": [60, 20, 20, 20], "segmentation": [[60, 20, 80, 20, 80, 40, 60, 40]]}


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path


def write(folder, content) -> dict:
    path = folder / "records.json"
    path.write_text(json.dumps(content))
    return {"annotations": str(path), "image_root": str(folder), "tile_size": SIZE}


def coco(*annotations, **more) -> dict:
    image = {"id": 3, "file_name": "a.png", "height": 40, "width": 80}
    entries = [{"id": 100 + i, "image_id": 3, **a} for i, a in enumerate(annotations)]
    return {"images": [image], "annotations": entries, **more}


def test_region_caption(folder):
    options = write(folder, coco(LEFT_HALF | {"caption": "a BROWN horse"}))
    for form in ("box", "mask"):
        example = DATASETS["region_captions"](**options, form=form)[0]
        assert example.turns[1] == ("gpt", "A brown horse.")
        assert example.turns[0][1].startswith("<image>\n")
        assert example.turns[0][1].count("<reg>region1<region></reg>") == 1
        assert example.regions.shape == (1, SIZE, SIZE) and example.region_images.tolist() == [0]
        # 40 of 80 columns; boxes include their end, masks do not.
        columns = example.regions[0].all(0).nonzero()[0]
        assert columns.tolist() == list(range(11 if form == "box" else 10))
        assert example.images[0].shape[1:] == (SIZE, SIZE, 3)
    tested = DATASETS["region_captions"](**options, test=True)[0]
    assert "<reg>region<region></reg>" in tested.turns[0][1]
    assert tested.meta == {"answers": ["a BROWN horse"], "image_id": 3}


def test_region_caption_stretches_outside_anyres(folder):
    options = write(folder, coco(CORNER | {"caption": "a horse"}))
    source = DATASETS["region_captions"](**options, image_mode="pad")
    assert source.tiling.mode == "stretch" and source[0].images[0].shape[0] == 1


def test_region_caption_drops_crowds_short_captions_and_bad_boxes(folder):
    kept = LEFT_HALF | {"caption": "a brown horse"}
    annotations = [
        kept | {"iscrowd": 1},
        kept | {"caption": "horse"},
        kept | {"bbox": [0, 0, 0.5, 9]},
        kept | {"bbox": [90, 0, 9, 9]},
        kept | {"area": None},
    ]
    source = DATASETS["region_captions"](**write(folder, coco(*annotations)), min_words=3)
    assert len(source) == 1 and source[0].record == "annotation 104"
    assert [a["id"] for a in source.coco.crowds[3]] == [100]  # kept apart, for metrics


def test_mixed_forms_are_drawn_from_the_index(folder):
    options = write(folder, coco(*[LEFT_HALF | {"caption": "a horse"}] * 30))
    source = DATASETS["region_captions"](**options, form="mixed")
    widths = [int(source[i].regions[0, 0].sum()) for i in range(30)]
    assert set(widths) == {10, 11}
    assert widths == [int(source[i].regions[0, 0].sum()) for i in range(30)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco(LEFT_HALF), "annotation 100, field 'caption': the field is missing"),
        (coco({"caption": "x"}), "annotation 100, field 'bbox': the field is missing"),
        (coco({"caption": "x", "bbox": [1, 2, 3]}), "is not x, y, width, height"),
        (coco(LEFT_HALF | {"caption": "x", "image_id": 9}), "picture 9 is not among the file's images"),
        (coco({"caption": "x", "bbox": [1, 2, None, 4]}), "annotation 100, field 'bbox': .* is not x, y"),
        (coco({"caption": "x", "bbox": [1, math.nan, 3, 4]}), "annotation 100, field 'bbox': .* is not x, y"),
        (coco({"caption": "x", "bbox": [1, "2", 3, 4]}), "annotation 100, field 'bbox': .* is not x, y"),
        (coco(LEFT_HALF | {"caption": "x", "area": "5"}), "annotation 100, field 'area': '5' is a str"),
        ({"images": []}, "field 'annotations': the field is missing"),
        ([], "not a COCO file"),
    ],
)
def test_bad_coco_files(folder, content, message):
    with pytest.raises(DataError, match=message):
        DATASETS["region_captions"](**write(folder, content))


def test_picture_of_another_size_is_refused(folder):
    content = coco(LEFT_HALF | {"caption": "a horse"})
    content["images"][0]["height"] = 41
    source = DATASETS["region_captions"](**write(folder, content))
    with pytest.raises(DataError, match=r"record image 3: the picture is \(40, 80\)"):
        source[0]


def test_missing_and_empty_masks(folder):
    boxed = {"bbox": [0, 0, 9, 9], "caption": "a horse"}
    source = DATASETS["region_captions"](
        **write(folder, coco(boxed, boxed | {"segmentation": [[1, 1, 1, 1, 1, 1]]})), form="mask"
    )
    with pytest.raises(DataError, match="annotation 100, field 'segmentation': the field is missing"):
        source[0]
    with pytest.raises(DataError, match="annotation 101, field 'segmentation': the mask is empty at 20"):
        source[1]


def test_recognition(folder):
    categories = [{"id": 7, "name": "bow_(weapon)"}, {"id": 9, "name": "Dog"}]
    annotations = [LEFT_HALF | {"category_id": 9}, CORNER | {"category_id": 7}]
    options = write(folder, coco(*annotations, categories=categories))
    options |= {"form": "box", "clean_names": True, "note": "LVIS"}
    tested = DATASETS["recognition"](**options, test=True)[0]
    assert [text for role, text in tested.turns if role == "gpt"] == ["Dog.", "Bow weapon."]
    questions = [text for role, text in tested.turns if role == "human"]
    assert questions[0].startswith("<image>\n") and questions[1].count("<image>") == 0
    assert all(f"region{n}<region>" in text for n, text in enumerate(questions, 1))
    assert all(text.endswith(" (LVIS)") for text in questions)
    # 60 to 80 of 80 columns, 20 to 40 of 40 rows, stretched to 20 x 20.
    assert tested.regions[1, 10:, 15:].all() and tested.regions[1].sum() == 10 * 5
    orders = {tuple(DATASETS["recognition"](**options, seed=seed)[0].meta["answers"]) for seed in range(20)}
    assert orders == {("dog", "bow weapon"), ("bow weapon", "dog")}
    one = DATASETS["recognition"](**options, max_regions=1)[0]
    assert len(one.turns) == 2 and len(one.regions) == 1


def test_recognition_draws_anew_for_every_picture(folder):
    content = coco(*[LEFT_HALF | {"category_id": 9}] * 2, categories=[{"id": 9, "name": "dog"}])
    content["images"] = [content["images"][0] | {"id": number} for number in range(12)]
    content["annotations"] = [
        annotation | {"image_id": number} for number in range(12) for annotation in content["annotations"]
    ]
    (folder / "own.json").write_text(json.dumps({"recognition": ["A {region}", "B {region}"]}))
    options = write(folder, content) | {"templates": str(folder / "own.json"), "image_mode": "pad"}
    source = DATASETS["recognition"](**options)
    examples = [source[number] for number in range(12)]
    assert source.tiling.mode == "stretch"
    assert [example.meta["image_id"] for example in examples] == list(range(12))
    asked = {tuple(text.removeprefix("<image>\n")[0] for _, text in e.turns[::2]) for e in examples}
    assert asked == {("A", "A"), ("A", "B"), ("B", "A"), ("B", "B")}
    # Boxes include their end, masks do not.
    forms = {tuple(region[0].sum() for region in example.regions) for example in examples}
    assert forms == {(11, 11), (11, 10), (10, 11), (10, 10)}
    tested = DATASETS["recognition"](**options, test=True)[5]
    assert [region[0].sum() for region in tested.regions] == [11, 11]


def test_recognition_refuses_pictures_of_another_size(folder):
    content = coco(LEFT_HALF | {"category_id": 1}, categories=[{"id": 1, "name": "dog"}])
    content["images"][0]["width"] = 81
    with pytest.raises(DataError, match=r"record image 3: the picture is \(40, 80\)"):
        DATASETS["recognition"](**write(folder, content))[0]


def test_recognition_skips_small_objects_and_empty_pictures(folder):
    categories = [{"id": 9, "name": "dog"}]
    tiny = {"bbox": [0, 0, 8, 40], "category_id": 9}  # 2 of 20 columns
    source = DATASETS["recognition"](**write(folder, coco(tiny, categories=categories)), form="box")
    with pytest.raises(DataError, match="record image 3: no object exceeds 2 pixels"):
        source[0]
    assert len(DATASETS["recognition"](**write(folder, coco(categories=categories)))) == 0


def test_recognition_unknown_category(folder):
    source = DATASETS["recognition"](**write(folder, coco(LEFT_HALF | {"category_id": 1})))
    with pytest.raises(DataError, match="annotation 100, field 'category_id': 1 is none of the file's"):
        source[0]


def test_lvis_names_pictures_by_url(folder):
    content = coco(LEFT_HALF | {"category_id": 1}, categories=[{"id": 1, "name": "dog"}])
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.example/a.png"
    assert len(DATASETS["recognition"](**write(folder, content), form="box")[0].regions) == 1


@pytest.mark.parametrize(
    ("task", "name", "pictures", "answer"),
    [
        ("recognition", "coco", "coco/train2017", "Bow_(weapon)."),
        ("recognition", "lvis", "coco/train2017", "Bow weapon."),
        ("region", "refcoco", "coco/train2014", "A large bow."),
    ],
)
def test_stage_1_reads_what_is_released(folder, task, name, pictures, answer):
    options = fill_root(MIXTURES["stage1_tune"][task]["datasets"][name], str(folder))
    (folder / pictures).mkdir(parents=True)
    (folder / "a.png").rename(folder / pictures / "a.png")
    captions = ("bow", "a large bow")  # one word is too few
    annotations = [LEFT_HALF | {"category_id": 7, "caption": caption} for caption in captions]
    content = coco(*annotations, categories=[{"id": 7, "name": "bow_(weapon)"}])
    if name == "lvis":
        del content["images"][0]["file_name"]
        content["images"][0]["coco_url"] = "http://images.example/train2017/a.png"
    file = folder / options["annotations"]
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    source = open_source(name, options, spec=CollateSpec(0, SIZE, 0), seed=0)
    example = source[0]
    assert len(source) == 1 and source.form == "mixed" and example.turns[1][1] == answer
    assert ("classes)" in example.turns[0][1]) == (task == "recognition")  # says whose label is meant


def osprey(*annotations, **more) -> dict:
    return {"file_name": "a.png", "height": 40, "width": 80, "annotation": list(annotations), **more}


def chat(*texts) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("kind", ["conversation", "part", "short"])
def test_osprey_lists_regions(folder, kind):
    record = osprey(LEFT_HALF, CORNER, conversations=chat("<image>\nwhat is <region2>?", "<region2>: a dog"))
    example = DATASETS["osprey"](**write(folder, [record]), kind=kind, test=True)[0]
    question, answer = (text for _, text in example.turns)
    assert question.startswith("<image>\nThere are 2 regions in this picture: <reg>region1<region></reg>, ")
    assert "what is region2?" in question and question.count("<region>") == 2
    assert question.endswith("phrase.") == (kind != "conversation")
    assert answer == "region2: a dog" and len(example.regions) == 2
    assert example.regions[0, :, :10].all() and not example.regions[0, :, 10:].any()


def test_osprey_details(folder):
    record = osprey(LEFT_HALF, CORNER, description=["<region1>: a horse", "<region2>: a dog"])
    record["file_name"] = "COCO_train2014_a.png"
    example = DATASETS["osprey"](**write(folder, [record]), kind="detailed")[0]
    assert [text for role, text in example.turns if role == "gpt"] == ["a horse", "a dog"]
    questions = [text for role, text in example.turns if role == "human"]
    assert "region1<region>" in questions[0] and "region2<region>" in questions[1]


def test_osprey_negatives(folder):
    talk = chat("<image>\nis <region1> a dog?", "no", "is <region1> a cat?", "<yes>")
    record = osprey(LEFT_HALF, CORNER, conversations=talk)
    example = DATASETS["osprey"](**write(folder, [record]), kind="negative")[0]
    assert example.turns == [
        ("human", "<image>\nis <reg>region1<region></reg> a dog?"),
        ("gpt", "no"),
        ("human", "is <reg>region2<region></reg> a cat?"),
        ("gpt", "yes"),
    ]


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("short", osprey(conversations=chat("a", "b")), "field 'annotation': no regions"),
        ("short", osprey({"bbox": []}, conversations=chat("a", "b")), "0, region 1, field 'segmentation'"),
        ("short", osprey(LEFT_HALF, height=41, conversations=chat("a", "b")), r"the picture is \(40, 80\)"),
        ("detailed", osprey(LEFT_HALF, description=[]), "0 rounds for 1 regions"),
        ("detailed", osprey(LEFT_HALF, description=["a horse"]), "does not start with <region1>:"),
        ("negative", osprey(LEFT_HALF, conversations=chat("a", "b")), "the question names 0 regions"),
        ("negative", osprey(LEFT_HALF, CORNER, conversations=chat("<region1>", "b")), "1 rounds for 2"),
    ],
)
def test_osprey_bad_records(folder, kind, record, message):
    source = DATASETS["osprey"](**write(folder, [record]), kind=kind)
    with pytest.raises(DataError, match=message):
        source[0]


def vcr(question: str, answer: str, **more) -> dict:
    boxes, objects = [[0, 0, 0.5, 1], [0.75, 0.5, 1, 1]], ["person", "dog"]
    return {
        "image": "a.png",
        "boxes": boxes,
        "objects": objects,
        "conversations": chat(question, answer),
    } | more


def test_vcr(folder):
    record = vcr("<image>\nWhy is 1 near 2?", "1 likes 2.", correct_option="A", category="qa")
    example = DATASETS["vcr"](**write(folder, [record]))[0]
    assert example.turns == [
        ("human", "<image>\nWhy is <reg>region1<region></reg> near <reg>region2<region></reg>?"),
        ("gpt", "Person at region1 likes dog at region2."),
    ]
    # Boxes include their end: 11 columns of 20, and a quarter that is cut at the border.
    assert example.regions[0, :, :11].all() and example.regions[0].sum() == 20 * 11
    assert example.regions[1, 10:, 15:].all() and example.regions[1].sum() == 10 * 5
    listed = DATASETS["vcr"](**write(folder, [vcr("Given <regions>, why?", "A")]))[0]
    assert listed.turns[0][1].count("<region>") == 2 and "accepted" not in listed.meta


def test_vcr_pairs_answers_with_reasons(folder):
    kinds = ("qa", "qa", "qar", "qa", "qar", "qar")
    records = [
        vcr("<regions>?", "A", category=kind, correct_option="ABCD"[n % 4]) for n, kind in enumerate(kinds)
    ]
    found = [example.meta for example in DATASETS["vcr"](**write(folder, records))]
    assert [meta["group"] for meta in found] == [0, 1, 0, 2, 1, 2]
    assert [meta["kinds"] for meta in found] == [[kind] for kind in kinds]
    assert [meta["accepted"] for meta in found] == [(letter,) for letter in "ABCDAB"]


def test_vcr_rounds(folder):
    talk = chat("What is 2?", "Tom's dog.", "And 1 on the 4th?", "1, WITH 2.")
    record = vcr("", "", conversations=talk, objects=["Person", "dog"], id=7)
    source = DATASETS["vcr"](**write(folder, [record]), image_mode="pad")
    example = source[0]
    assert example.record == "7" and source.tiling.mode == "stretch"
    assert example.meta["answers"] == ["Tom's dog.", "Person at region1, with dog at region2."]
    assert [text.startswith("<image>\n") for _, text in example.turns] == [True, False, False, False]


def test_vcr_regions_follow_the_text(folder):
    example = DATASETS["vcr"](**write(folder, [vcr("Why is 2 looking at 1?", "a")]))[0]
    assert example.turns[0][1].index("region2") < example.turns[0][1].index("region1")
    assert example.regions[0, 10:, 15:].all() and not example.regions[0, :, :10].any()
    assert example.regions[1, :, :10].all() and not example.regions[1, 10:, 15:].any()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (vcr("Why is 1 here?", "a"), r"name objects \[1\], the record has 2 boxes"),
        (vcr("Is 1 like 1?", "a"), r"name objects \[1, 1\], the record has 2 boxes"),
        (vcr("Is 1 like 1 or 2?", "a"), r"name objects \[1, 1, 2\], the record has 2 boxes"),
        (vcr("", "", conversations=chat("1?", "a", "<regions>?", "b")), r"name objects \[1, 1, 2\]"),
        (vcr("Is 0 near 1 or 2?", "a"), "speaks of object 0, there are 2"),
        (vcr("Why is 1 near 3?", "a"), "speaks of object 3, there are 2"),
        (vcr("Why?", "a", objects=["person"]), "2 boxes for 1 objects"),
        (vcr("Why?", "a", boxes="none"), "field 'boxes': 'none' is a str"),
        (vcr("<regions>?", "A", category="qb", correct_option="A"), "'qb' is none of qa, qar"),
        (vcr("<regions>?", "A", category="qa", correct_option="AB"), "'AB' is none of A, B, C, D"),
        (vcr("<regions>?", "A", category="qa", correct_option=0), "field 'correct_option': 0 is a"),
        (vcr("<regions>?", "A", category="qa"), "field 'correct_option': the field is missing"),
        (vcr("Is 1 with 2?", "a", boxes=[[0, 0, 1, 1, 0.9]] * 2), "is not left, top, right, bottom"),
    ],
)
def test_vcr_bad_records(folder, record, message):
    source = DATASETS["vcr"](**write(folder, [record]))
    with pytest.raises(DataError, match=message):
        source[0]


def test_unknown_options(folder):
    options = write(folder, coco())
    with pytest.raises(ValueError, match="unknown form 'blob', there are box, mask, mixed"):
        DATASETS["recognition"](**options, form="blob")
    with pytest.raises(ValueError, match="unknown form 'blob', there are box, mask, mixed"):
        DATASETS["region_captions"](**options, form="blob")
    with pytest.raises(ValueError, match="unknown kind 'long', there are conversation"):
        DATASETS["osprey"](**options, kind="long")
