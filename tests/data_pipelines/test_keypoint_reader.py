# SPDX-License-Identifier: Apache-2.0
"""Reader of poses, on files written here: each point keeps its name whatever happens to its picture."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import DATASETS
from data_pipelines.collate import CollateSpec, TaskShape, make_row
from data_pipelines.conversation import link
from data_pipelines.errors import CapacityError, DataError
from data_pipelines.keypoint_sets import SETS
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch.draw import draw_objects
from launch.perceive import read
from launch.truth import keypoint_names, objects_of
from vllm2_jax.evals import EVALS

HEIGHT, WIDTH = 120, 160
COCO = SETS["coco"]


def colour(place):
    """A colour of its own for each keypoint."""
    return 40 + 12 * place, 250 - 12 * place, 60


def person(seed=0, **changes) -> dict:
    """17 points with room between them, in a box around them."""
    rng = np.random.default_rng(seed)
    spots = rng.permutation(8 * 6)[:17]
    points = np.stack([10 + 20 * (spots % 8), 10 + 20 * (spots // 8), np.full(17, 2)], 1)
    annotation = {"bbox": [4, 4, 150, 110], "area": 9000.0, "category_id": 1, "image_id": 1, "id": 7}
    return annotation | {"keypoints": points.ravel().tolist(), "num_keypoints": 17} | changes


def content(*annotations, names=COCO.names, images=1, **more) -> dict:
    pictures = [{"id": i + 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH} for i in range(images)]
    category = {"id": 1, "name": "person", "keypoints": [name.replace(" ", "_") for name in names]}
    return {"images": pictures, "annotations": list(annotations), "categories": [category], **more}


@pytest.fixture
def opened(tmp_path):
    """Writes a file and its picture: each keypoint of the first object is a square of its colour."""

    def open_source(file, **options):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for place, (x, y, v) in enumerate(np.reshape(file["annotations"][0].get("keypoints", ()), (-1, 3))):
            if v > 0 and 0 <= x < WIDTH and 0 <= y < HEIGHT:
                pixels[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5] = colour(place)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        (tmp_path / "poses.json").write_text(json.dumps(file))
        options = {"tile_size": 28, "max_tiles": 1, "decoder_size": 160, **options}
        return DATASETS["keypoints"](
            annotations=str(tmp_path / "poses.json"), image_root=str(tmp_path), **options
        )

    return open_source


def targets_of(example) -> dict:
    return example.targets["unipose"]


def test_a_test_asks_for_everything_in_order(opened):
    annotation = person()
    example = opened(content(annotation), test=True)[0]
    question, answer = (text for _, text in example.turns)
    assert question.startswith(
        "<image>\nDetect person. Then locate these keypoints: nose, left eye, right eye"
    )
    assert answer.startswith(
        "Found: " + link("person", "det") + ". Keypoints: " + link("nose", "pose") + ", "
    )
    assert answer.count("[POSE]") == 17 and example.meta["keypoints"] == list(COCO.names)
    targets = targets_of(example)
    # The longer side could have 160 pixels, the shorter one 800 / 1333 of that.
    assert targets["image"].shape[:2] == (96, 128) and not targets["enlarge"]
    np.testing.assert_allclose(targets["boxes"], [[79 / 160, 59 / 120, 150 / 160, 110 / 120]], rtol=1e-6)
    np.testing.assert_allclose(targets["area"], [9000 / (160 * 120)], rtol=1e-3)
    points = np.reshape(annotation["keypoints"], (17, 3))
    np.testing.assert_allclose(targets["keypoints"][0], points[:, :2] / (WIDTH, HEIGHT), rtol=1e-6)
    assert targets["keypoint_ids"].tolist() == list(range(17)) and (targets["visibility"] == 2).all()
    assert len(example.images) == 1 and example.images[0].shape == (1, 28, 28, 3)


def test_points_keep_their_names_in_random_views(opened):
    flipped = cropped = 0
    for seed in range(40):
        example = opened(content(person()), seed=seed)[0]
        targets, answer = targets_of(example), example.turns[1][1]
        assert [COCO.names[i] for i in targets["keypoint_ids"]] == example.meta["keypoints"]
        assert ", ".join(link(name, "pose") for name in example.meta["keypoints"]) in answer
        size = targets["image"].shape[1::-1]
        matches = {"as it is": 0, "mirrored": 0}
        for place, point, v in zip(
            targets["keypoint_ids"], targets["keypoints"][0], targets["visibility"][0], strict=True
        ):
            if v:
                x, y = np.minimum(point * size, np.subtract(size, 1)).astype(int)
                for way, number in (("as it is", place), ("mirrored", COCO.mirror[place])):
                    near = np.abs(targets["image"][y, x].astype(int) - colour(number)).max()
                    matches[way] += near < 6
        seen = int((targets["visibility"] > 0).sum())
        assert seen in matches.values()
        flipped += matches["mirrored"] > matches["as it is"]
        cropped += seen < len(targets["keypoint_ids"])
    assert 8 < flipped < 32 and 4 < cropped < 36


def test_without_random_views_training_sees_what_tests_see(opened):
    tested = targets_of(opened(content(person()), test=True)[0])
    for seed in range(10):
        targets = targets_of(opened(content(person()), seed=seed, augment=False, flips=1.0)[0])
        np.testing.assert_array_equal(targets["image"], tested["image"])
        np.testing.assert_array_equal(targets["boxes"], tested["boxes"])
        ids = targets["keypoint_ids"]
        np.testing.assert_array_equal(targets["keypoints"], tested["keypoints"][:, ids])


def test_a_folder_that_lacks_the_beginning_of_the_file_names(opened):
    file = content(person())
    file["images"][0]["file_name"] = "Set/images/a.png"
    with pytest.raises(DataError, match=r"Set/images/a\.png"):
        opened(file, test=True)[0]
    assert opened(file, test=True, prefix="Set/images/")[0].meta["image_id"] == 1


def test_classes_that_no_object_has_can_be_left_out(opened):
    file = content(person(category_id=2))
    file["categories"] = [{"id": i, "name": name} for i, name in enumerate(("bat", "bear", "cat"), start=1)]
    assert opened(file, test=True)[0].meta["classes"] == ["bat", "bear", "cat"]
    few = opened(file, test=True, every_class=False)[0]
    assert few.meta["classes"] == ["bear"] and few.meta["truth"]["labels"] == ["bear"]


def test_how_many_keypoints_training_asks_for(opened):
    source = opened(content(*[person(image_id=i + 1, id=i) for i in range(120)], images=120))
    counts = [len(targets_of(source[i])["keypoint_ids"]) for i in range(120)]
    assert 45 < sum(count == 17 for count in counts) < 85 and len(set(counts)) > 10 and min(counts) >= 1
    orders = {tuple(source[i].meta["keypoints"][:2]) for i in range(20)}
    assert len(orders) > 5
    again = source[3]
    np.testing.assert_array_equal(targets_of(again)["image"], targets_of(source[3])["image"])


def test_lists_without_a_known_mirror_are_not_flipped(opened):
    names = [f"spot {letter}" for letter in "abcdefghijklmnopq"]
    source = opened(content(person(), names=names), keypoints="file", flips=1.0)
    assert source.points.mirror is None and source.points.names == tuple(names)
    targets = targets_of(source[0])
    size = targets["image"].shape[1::-1]
    for place, point, v in zip(
        targets["keypoint_ids"], targets["keypoints"][0], targets["visibility"][0], strict=True
    ):
        x, y = np.minimum(point * size, np.subtract(size, 1)).astype(int)
        assert not v or np.abs(targets["image"][y, x].astype(int) - colour(place)).max() < 6


def test_points_outside_the_picture_are_not_taught(opened):
    annotation = person()
    annotation["keypoints"][:9] = [-3, 20, 2, 50, 400, 1, WIDTH, 30, 2]
    example = opened(content(annotation), test=True)[0]
    targets = targets_of(example)
    assert targets["visibility"][0, :4].tolist() == [0, 0, 0, 2]
    assert not targets["keypoints"][0, :3].any() and (targets["keypoints"] <= 1).all()
    # Metrics compare with the annotation as it is.
    assert example.meta["truth"]["keypoints"][0, 0].tolist() == [-3, 20, 2]


def test_hidden_points_are_taught_and_those_without_a_place_are_not(opened):
    annotation = person()
    annotation["keypoints"][2:15:3] = [1, 0, 3, 2, 1]  # 3 is a 2 that some files write
    annotation["keypoints"][12] = float("nan")
    example = opened(content(annotation), test=True)[0]
    targets, true = targets_of(example), example.meta["truth"]["keypoints"][0]
    assert targets["visibility"][0, :6].tolist() == true[:6, 2].tolist() == [1, 0, 2, 2, 0, 2]
    points = np.reshape(annotation["keypoints"], (17, 3))[[0, 2, 3], :2]
    np.testing.assert_allclose(targets["keypoints"][0, [0, 2, 3]], points / (WIDTH, HEIGHT), rtol=1e-6)
    assert not targets["keypoints"][0, [1, 4]].any() and not true[4].any()


def test_objects_without_keypoints(opened):
    hidden = person(id=8, keypoints=[0] * 51, num_keypoints=5)  # the number is wrong
    crowd = person(id=9, iscrowd=1, keypoints=[0] * 51)
    bare = person(id=10)
    del bare["keypoints"]
    null = person(id=11, keypoints=None, area=None)
    example = opened(content(person(), hidden, crowd, bare, null), test=True)[0]
    assert len(targets_of(example)["boxes"]) == 1
    truth = objects_of(example, "unipose")
    assert len(truth.boxes) == 5 and truth.crowds.tolist() == [False, False, False, False, True]
    assert (truth.keypoints[..., 2] > 0).sum(1).tolist() == [17, 0, 0, 0, 0]
    assert example.meta["truth"]["area"] is None
    # Pictures without any labelled keypoint are tested on, not trained on.
    file = content(person(), hidden | {"image_id": 2}, images=3)
    assert len(opened(file)) == 1 and len(opened(file, test=True)) == 3
    empty = opened(file, test=True)[2]
    assert targets_of(empty)["keypoints"].shape == (0, 17, 2) and empty.meta["truth"]["boxes"].shape == (0, 4)
    with pytest.raises(DataError, match="no annotation has a labelled keypoint"):
        opened(content(hidden, bare))


def test_crowdpose_has_no_areas(opened):
    crowdpose = SETS["crowdpose"]
    annotation = person(keypoints=person()["keypoints"][:42])
    del annotation["area"]
    file = content(annotation, names=crowdpose.names)
    file["images"][0]["crowdIndex"] = 0.4
    example = opened(file, keypoints="crowdpose", test=True)[0]
    np.testing.assert_allclose(targets_of(example)["area"], [150 * 110 / (160 * 120)], rtol=1e-3)
    assert example.meta["truth"]["area"] is None and example.meta["truth"]["crowd_index"] == 0.4
    assert keypoint_names(example, "unipose")[:15] == [*crowdpose.names, ""]


def test_human_art_lists_more_points_than_it_annotates(opened):
    file = content(person(), names=[*COCO.names, "left finger", "right finger", "left toe", "right toe"])
    assert len(targets_of(opened(file, keypoints="humanart", test=True)[0])["keypoint_ids"]) == 17
    with pytest.raises(
        DataError, match="annotation 7, field 'keypoints': 51 numbers where 21 keypoints have 63"
    ):
        opened(file, keypoints="file")[0]


def test_the_list_has_to_be_the_files(opened):
    file = content(person(), names=SETS["ap10k"].names)
    with pytest.raises(DataError, match="category 1, field 'keypoints': keypoint 0 is 'left eye'"):
        opened(file)
    assert opened(file, keypoints="file").points is SETS["ap10k"] is opened(file, keypoints="ap10k").points
    spelt = content(person(), names=["L_Eye", "R_Eye", *SETS["ap10k"].names[2:]])
    assert opened(spelt, keypoints="ap10k").points.names[0] == "left eye"
    with pytest.raises(ValueError, match="unknown keypoints 'fish', there are"):
        opened(file, keypoints="fish")
    two = content(person(), names=COCO.names)
    two["categories"].append({"id": 2, "name": "dog", "keypoints": ["nose"]})
    with pytest.raises(DataError, match="the categories have 2 different lists"):
        opened(two, keypoints="file")
    with pytest.raises(DataError, match="record categories, field 'keypoints': no names"):
        opened(content(person(), names=()), keypoints="file")
    many = content(person(), names=[f"spot {i}" for i in range(69)])
    with pytest.raises(DataError, match="69 keypoints, the decoder knows 68"):
        opened(many, keypoints="file")


def test_repeated_names_are_told_apart(opened):
    file = content(person(), names=["none", "none", *COCO.names[2:]])
    example = opened(file, keypoints="file", test=True)[0]
    assert example.meta["keypoints"][:3] == ["none", "none 2", "right eye"]


def test_classes_of_training(opened):
    file = content(person(category_id=3))
    names = [f"animal_{i}" for i in range(30)]
    file["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
    counts = []
    for seed in range(60):
        example = opened(file, seed=seed)[0]
        classes = example.meta["classes"]
        assert len(set(classes)) == len(classes) and "animal 3" in classes
        assert classes[targets_of(example)["labels"][0]] == "animal 3"
        counts.append(len(classes))
    assert set(counts) == {1, 2, 3, 4, 5, 6, 30} and 4 < counts.count(30) < 24
    example = opened(file, test=True)[0]
    assert example.meta["classes"] == [f"animal {i}" for i in range(30)]
    assert example.meta["truth"]["labels"] == ["animal 3"]
    with pytest.raises(DataError, match="annotation 7, field 'category_id': 99 is none of the file's"):
        opened(content(person(category_id=99)))[0]


def test_more_objects_than_places(opened):
    file = content(*[person(seed, id=seed) for seed in range(4)])
    shape = {"decoder": "unipose", "tiles": 1, "links": {"det": 1, "pose": 17}}
    capacities = {"size": 160, "objects": 3}
    tokenizer, spec = load_tokenizer(TINY_TOKENIZER), CollateSpec(512, 28, 4)
    example = opened(file, test=True)[0]
    with pytest.raises(CapacityError, match=r"poses.json, record image 1.*: 4 objects .* room for 3"):
        make_row(example, tokenizer, spec, TaskShape(1, capacities=capacities, **shape))
    row = make_row(example, tokenizer, spec, TaskShape(1, capacities=capacities, strict=False, **shape))
    assert row.counters["dropped_targets"] == 1 and row.targets["unipose"]["valid"].all()
    assert len(objects_of(example, "unipose").boxes) == 4  # the score still counts all of them


@pytest.mark.parametrize(("metric", "count"), [("keypoints", 3), ("box", 3), ("unikpt", 3), ("pck", 1)])
def test_the_truth_is_what_predictions_are_compared_with(opened, metric, count):
    """A decoder that answers with its targets has a precision of 1."""
    source = opened(content(*[person(seed, id=seed) for seed in range(count)]), test=True)
    targets = targets_of(source[0])
    found = {"boxes": targets["boxes"], "labels": targets["labels"], "scores": np.linspace(0.9, 0.7, count)}
    seen = read(found | {"keypoints": targets["keypoints"]}, 0, source[0], "unipose", (120, 160))
    values = EVALS[metric]([seen.objects], [objects_of(source[0], "unipose")])
    assert values["pck" if metric == "pck" else f"{metric}/AP"] == pytest.approx(1.0)
    # A report draws the names that the truth has points for.
    drawn = draw_objects(
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        objects_of(source[0], "unipose"),
        keypoints=keypoint_names(source[0], "unipose"),
    )
    x, y = source[0].meta["truth"]["keypoints"][0, 1, :2].astype(int)  # the left eye
    assert count > 1 or drawn.getpixel((int(x), int(y))) == (0, 190, 70)


def test_malformed_files(opened):
    turned = content(person())
    turned["images"][0]["width"] = 99
    with pytest.raises(DataError, match=r"record image 1: the picture is \(120, 160\)"):
        opened(turned)[0]
    for broken in (None, "2"):
        text = person(id=8, keypoints=[broken] * 51)
        with pytest.raises(DataError, match="annotation 8, field 'keypoints': not all are numbers"):
            opened(content(person(), text), test=True)[0]
    nan = person()
    nan["keypoints"][0] = float("nan")
    assert targets_of(opened(content(nan), test=True)[0])["visibility"][0, :2].tolist() == [0, 2]
