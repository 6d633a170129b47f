# SPDX-License-Identifier: Apache-2.0
"""Maps of classes and the views of scenes. Numbers in the map: 0 nothing, 1 ground, 2 horse, 3 dog, 4 sky."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import DATASETS, scene_views
from data_pipelines.errors import DataError
from data_pipelines.scene_views import SceneView, augment_scene, fit_scene
from launch.truth import classes_of, objects_of
from tests.data_pipelines import objects
from vllm2_jax.evals.objects import decode

load = DATASETS["semantic"]
NAMES = ["ground", "Horse ", "dog", "sky"]


def class_map() -> np.ndarray:
    numbers = np.zeros((objects.HEIGHT, objects.WIDTH), np.uint8)
    numbers[30:] = 1
    numbers[objects.mask("horse")] = 2
    numbers[objects.mask("dog")] = 3
    numbers[:, -2:] = 255
    return numbers


@pytest.fixture
def options(tmp_path):
    objects.save_picture(tmp_path, "a.jpg")
    (tmp_path / "labels").mkdir()
    objects.save_mask(tmp_path / "labels/a.png", class_map())
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    roots = {"image_root": str(tmp_path), "mask_root": str(tmp_path / "labels")}
    return roots | {"names": str(tmp_path / "names.json"), "tile_size": objects.TILE, "decoder_size": 64}


def test_in_tests_all_classes_and_the_whole_map(options):
    example = load(**options, test=True)[0]
    assert example.turns[0][1] == "<image>\nLabel every pixel with one of: ground, horse , dog, sky."
    links = ", ".join(f"{name}[SEG]{objects.COUNTS_TEXT}" for name in NAMES)
    assert example.turns[1][1] == f"The masks: {links}."
    targets = example.targets["grounding_dino"]
    assert targets["image"].shape == (64, 128, 3) and targets["labels"].tolist() == [0, 1, 2]
    truth = classes_of(example, "grounding_dino")
    wanted = np.where((class_map() == 0) | (class_map() == 255), 255, class_map().astype(int) - 1)
    np.testing.assert_array_equal(truth.labels, wanted)
    assert list(truth.names) == example.meta["classes"] == NAMES
    found = objects_of(example, "grounding_dino")
    assert found.labels.tolist() == NAMES[:3]
    for number, mask in enumerate(found.masks, 1):
        np.testing.assert_array_equal(decode(mask), class_map() == number)
    objects.shows(example, 1, "horse")
    objects.shows(example, 2, "dog")


def test_training(options):
    asked = set()
    for seed in range(20):
        example = load(**options, seed=seed)[0]
        targets, classes = example.targets["grounding_dino"], example.meta["classes"]
        assert max(targets["image"].shape) <= 64 and targets["masks"].any((1, 2)).all()
        assert targets["masks"].sum(0).max() == 1  # a pixel has one class
        assert len(set(targets["labels"].tolist())) == len(targets["labels"])
        asked.add(len(classes))
        question = example.turns[0][1].lower()
        assert all(name.lower() in question for name in classes)
        mask = dict(zip(targets["labels"].tolist(), targets["masks"], strict=True)).get(
            classes.index("dog") if "dog" in classes else -1
        )
        if mask is not None:
            inside = targets["image"][mask].astype(int)
            # Colours change, but the dog's blue stays the strongest, or its hue is turned as a whole.
            assert np.median(inside.max(1) - inside.min(1)) > 60
    assert asked == {2, 3, 4} or asked == {1, 2, 3, 4}
    objects.same(load(**options, seed=3)[0], load(**options, seed=3)[0])
    assert {len(load(**options, seed=s, most_classes=1)[0].meta["classes"]) for s in range(9)} == {1}


def test_the_tower_sees_the_whole_picture(options, tmp_path):
    objects.save_ramp(tmp_path / "a.jpg")
    objects.towers_see_all([load(**options, seed=seed)[0] for seed in range(8)])


def test_wordings_are_drawn(options, tmp_path):
    objects.draws_wordings(load, options, tmp_path, segmentation="{classes}", segmented="{link}")


def test_first_number(options, tmp_path):
    source = load(**options, first=0, test=True)
    with pytest.raises(DataError, match=r"the number 4 is none of the 4 classes"):
        objects.save_mask(tmp_path / "labels/a.png", class_map() + (class_map() == 3))
        source[0]
    objects.save_mask(tmp_path / "labels/a.png", class_map())
    np.testing.assert_array_equal(classes_of(source[0], "grounding_dino").labels, class_map())


def test_views_keep_picture_and_map_together(monkeypatch):
    rng = np.random.default_rng(0)
    classes = np.kron(rng.integers(0, 4, (4, 6)), np.ones((30, 30), int))
    image = np.repeat((classes * 60).astype(np.uint8)[..., None], 3, 2)
    monkeypatch.setattr(scene_views, "distort", lambda image, rng: image)
    flips, sizes = 0, set()
    for seed in range(30):
        view = augment_scene(SceneView(image, classes), np.random.default_rng(seed), 48)
        assert view.image.shape[:2] == view.classes.shape and max(view.classes.shape) <= 48
        far = np.abs(view.image[..., 0].astype(int) - view.classes * 60) > 31
        assert far.mean() < 0.2  # the borders; a map that is turned or shifted is wrong in 3 of 4
        counts = np.bincount(view.classes.ravel())
        flips += view.flipped
        sizes.add((counts > 0).sum())
    assert 8 < flips < 22 and max(sizes) == 4
    fitted = fit_scene(SceneView(image, classes), 30)
    assert fitted.classes.shape == (30, 45)
    assert fit_scene(SceneView(image[:6], classes[:6]), 30).classes.shape == (4, 120)  # at most 4 : 1


def test_parts_without_a_class_are_drawn_again():
    classes = np.full((60, 60), 255)
    classes[0, :20] = 1
    classes[1, :20] = 2
    image = np.zeros((60, 60, 3), np.uint8)
    for seed in range(20):
        view = augment_scene(SceneView(image, classes), np.random.default_rng(seed), 40)
        assert set(np.unique(view.classes)) & {1, 2} or seed  # nearest pixels may miss thin rows
    wide = SceneView(np.zeros((10, 100, 3), np.uint8), np.full((10, 100), 255))
    assert max(augment_scene(wide, np.random.default_rng(0), 20).image.shape) <= 20


COLUMNS = SceneView(np.zeros((100, 100, 3), np.uint8), np.tile(np.arange(100), (100, 1)))


def test_pictures_become_half_to_twice_as_large():
    zooms = []
    for seed in range(40):
        view = augment_scene(COLUMNS, np.random.default_rng(seed), 50).classes
        zooms.append(view.shape[1] / (np.ptp(view[0]) + 1) / 0.5)  # the shorter side to 50
    assert 0.45 < min(zooms) < 0.7 and 1.7 < max(zooms) < 2.2


def test_parts_reach_the_border():
    rows = SceneView(COLUMNS.image, COLUMNS.classes.T)
    for whole, first in ((COLUMNS, (0, 0)), (rows, (0, 0))):
        corners = {
            int(scene_views._part(whole, 98, np.random.default_rng(s)).classes[first]) for s in range(20)
        }
        assert corners == {0, 1, 2}


def test_no_class_fills_more_than_three_quarters_of_a_part(monkeypatch):
    monkeypatch.setattr(scene_views, "_SCALES", (2, 2))  # parts of 50 x 50 pixels
    whole = SceneView(COLUMNS.image, (COLUMNS.classes >= 70).astype(int))
    shares = [1 - augment_scene(whole, np.random.default_rng(s), 50).classes.mean() for s in range(30)]
    assert sum(share < 0.75 for share in shares) >= 27  # ten tries; a third of all parts


def test_colours_change_and_stay_colours():
    grey = np.full((8, 8, 3), 128, np.uint8)
    found = [scene_views.distort(grey, np.random.default_rng(seed)) for seed in range(40)]
    levels = {int(view.mean()) for view in found}
    assert len(levels) > 15 and min(levels) < 100 and max(levels) > 160
    steps = np.repeat(np.array([[108], [148]], np.uint8), 3, 1)[None]
    views = [scene_views.distort(steps, np.random.default_rng(seed)).astype(int) for seed in range(100)]
    contrasts = np.array([view[0, 1, 0] - view[0, 0, 0] for view in views])
    assert 35 < (np.abs(contrasts - 40) > 1).sum() < 65  # half of the time, before or after the colours
    assert 19 <= contrasts.min() < 25 and 55 < contrasts.max() <= 61
    red = np.zeros((8, 8, 3), np.uint8) + np.array([200, 20, 20], np.uint8)
    turned = [scene_views.distort(red, np.random.default_rng(seed)).mean((0, 1)) for seed in range(40)]
    assert any(x[1] > x[2] + 20 for x in turned) and any(x[2] > x[1] + 20 for x in turned)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((40, 80), np.uint8), "record a: no pixel has a class"),
        (np.full((40, 80), 9, np.uint8), "record a: the number 9 is none of the 4 classes"),
        (np.ones((4, 8), np.uint8), r"record a: the mask is \(4, 8\)"),
        (np.ones((40, 80, 3), np.uint8), r"record a: the file has colours \(RGB\)"),
    ],
)
def test_bad_maps(options, tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "labels/a.png")
    with pytest.raises(DataError, match=message) as found:
        load(**options)[0]
    assert "labels/a.png" in str(found.value) and found.value.remedy


def test_more_classes_than_a_map_has_numbers_for(options, tmp_path):
    names = [f"class {number}" for number in range(255)]
    (tmp_path / "names.json").write_text(json.dumps(names))
    assert len(load(**options, first=0).names) == 255
    with pytest.raises(DataError, match=r"names.json: 255 classes from number 1 on.*up to 254"):
        load(**options)


def test_missing_map(options, tmp_path):
    (tmp_path / "labels/a.png").unlink()
    with pytest.raises(DataError, match=r"labels/a.png, record a: no such mask. Remedy"):
        load(**options)[0]
