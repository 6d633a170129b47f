# SPDX-License-Identifier: Apache-2.0
"""Lists of keypoints: mirrors follow from names, bones join what belongs together."""

import pytest

from data_pipelines.keypoint_sets import MOST, SETS, bones_among, clean, distinct, mirror_of, named, side
from data_pipelines.synthetic.person import KEYPOINTS
from vllm2_jax.evals.pose import COCO_SIGMAS, CROWDPOSE_SIGMAS, UNIKPT_SIGMAS


@pytest.mark.parametrize("key", SETS)
def test_every_set_is_sound(key):
    points = SETS[key]
    count = len(points.names)
    assert count == len(set(points.names)) <= MOST
    assert all(name == clean(name) for name in points.names)
    assert all(0 <= i < count and 0 <= j < count and i != j for i, j in points.bones)
    assert len({frozenset(pair) for pair in points.bones}) == len(points.bones)
    if points.sigmas is not None:
        assert len(points.sigmas) == count and all(0 < sigma < 0.2 for sigma in points.sigmas)
    if points.mirror is None:
        assert key in ("table", "swivelchair")  # whose points are only numbered
        return
    assert [points.mirror[i] for i in points.mirror] == list(range(count))
    # A bone's mirror image is a bone, or else the skeleton is not a body's; limbs join points of one side.
    if key != "car":
        bones = {frozenset(pair) for pair in points.bones}
        assert {frozenset(points.mirror[i] for i in pair) for pair in bones} == bones
    for i, j in enumerate(points.mirror):
        assert (side(points.names[i]) == "") == (side(points.names[j]) == "")


def test_lists_agree_with_those_of_the_metrics_and_scenes():
    assert SETS["coco"].names == KEYPOINTS == SETS["humanart"].names == SETS["macaque"].names
    assert SETS["coco"].sigmas == pytest.approx(COCO_SIGMAS)
    assert SETS["crowdpose"].sigmas == pytest.approx(CROWDPOSE_SIGMAS)
    assert len(SETS["300w"].names) == MOST == len(UNIKPT_SIGMAS)


def test_faces_change_sides_by_number():
    mirror = SETS["300w"].mirror
    # Jaw, brows, nose, outer and inner corners of the eyes, lips; the chin and the middle of a lip stay.
    pairs = {0: 16, 7: 9, 17: 26, 21: 22, 31: 35, 36: 45, 39: 42, 41: 46, 48: 54, 50: 52, 60: 64, 65: 67}
    assert all(mirror[i] == j and mirror[j] == i for i, j in pairs.items())
    assert [i for i, j in enumerate(mirror) if i == j] == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]


@pytest.mark.parametrize(
    ("names", "mirror"),
    [
        (["left eye", "right eye", "nose"], (1, 0, 2)),
        (["eye right", "eye left"], (1, 0)),
        (["right eye right", "right eye left", "left eye right", "left eye left"], (3, 2, 1, 0)),
        (["base lefttop", "base righttop"], (1, 0)),
        (["bright spot"], (0,)),
        (["left eye", "nose"], None),
    ],
)
def test_mirrors_follow_from_names(names, mirror):
    assert mirror_of(names) == mirror


def test_given_pairs_come_before_names():
    names = ["right brow 1", "right brow 2", "left brow 1", "left brow 2", "lip 1", "lip 2"]
    assert mirror_of(names) == (2, 3, 0, 1, 4, 5)
    assert mirror_of(names, [[0, 3], [1, 2], [4, 5]]) == (3, 2, 1, 0, 5, 4)
    assert mirror_of(["left eye", "right eye", "left ear", "right ear"], [[0, 2]]) is None


def test_names_are_cleaned_and_told_apart():
    assert clean("  Thumb's_third-knuckle ") == "thumbs third knuckle"
    assert distinct(["none", "Left_Eye", "none", "none 2", "none"]) == (
        "none",
        "left eye",
        "none 2",
        "none 2 2",
        "none 3",
    )
    assert distinct(["", "?"]) == ("point", "point 2")


def test_a_file_that_brings_names():
    assert named([name.upper().replace(" ", "_") for name in SETS["ap10k"].names]) is SETS["ap10k"]
    own = named(["Left_Wing", "Right_Wing", "Beak", "Beak"])
    assert own.names == ("left wing", "right wing", "beak", "beak 2") and own.mirror == (1, 0, 2, 3)
    assert own.bones == [] and own.sigmas is None
    assert named(["corner a", "corner b"]).mirror is None  # nothing tells whether they change places
    assert named(["left wing", "beak"]).mirror is None


def test_bones_among_some_points():
    assert bones_among(("right elbow", "nose", "right shoulder")) == ((2, 0),)
    assert set(bones_among(("", "left eye", "nose", "right eye"))) == {(2, 3), (1, 2), (1, 3)}
    # Animals have no bone from shoulder to hip, people have.
    animal = SETS["ap10k"].names
    ends = {frozenset((animal[i], animal[j])) for i, j in bones_among(animal)}
    assert len(ends) == 17 and frozenset(("left shoulder", "left hip")) not in ends
    assert bones_among(("wing", "beak")) == ()
