# SPDX-License-Identifier: Apache-2.0
"""Scenes, their pictures and their examples agree with each other, and come from the seed alone."""

import dataclasses
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from data_pipelines.datasets.synthetic import TASKS, load
from data_pipelines.errors import DataError
from data_pipelines.synthetic.person import INDEX, KEYPOINTS, pose
from data_pipelines.synthetic.questions import QUESTIONS
from data_pipelines.synthetic.render import keypoints, render
from data_pipelines.synthetic.scene import COLOURS, KINDS, LEVELS, Scene, Thing, is_novel, sample
from data_pipelines.synthetic.words import caption, expressions, name, place

GREY = ((170, 170, 170), (170, 170, 170))


def scene_of(*things, aspect=1.0):
    return Scene(tuple(things), GREY, aspect)


def source(task, **options):
    level = "people" if task == "pose" else "full"
    return load(**{"task": task, "tile_size": 56, "decoder_size": 70, "level": level, **options})


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return np.array_equal(a, b)


@pytest.mark.parametrize("task", TASKS)
def test_a_record_depends_on_its_number_only(task):
    one, two = source(task), source(task)
    two[5]  # reading another record first changes nothing
    a, b = one[3], two[3]
    assert a.turns == b.turns and same(a.targets, b.targets) and same(a.regions, b.regions)
    assert all(same(x, y) for x, y in zip(a.images, b.images, strict=True))


def test_splits_and_seeds_differ():
    questions = {
        key: [load(task="caption", tile_size=14, **options)[i].turns[1][1] for i in range(30)]
        for key, options in {"a": {}, "b": {"split": "heldout"}, "c": {"seed": 1}}.items()
    }
    assert len({tuple(texts) for texts in questions.values()}) == 3


@pytest.mark.parametrize("level", LEVELS)
def test_scenes_keep_their_level(level):
    rules = LEVELS[level]
    for index in range(60):
        scene = sample(np.random.default_rng(index), rules)
        shapes = [t for t in scene.things if t.kind not in ("person", "sign")]
        assert scene.things and scene.aspect in rules.aspects
        assert len(shapes) <= rules.shapes[1]
        if rules.distinct:
            assert len({t.colour for t in scene.things}) == len(scene.things)
            assert len({t.kind for t in shapes}) == len(shapes)
        for number, thing in enumerate(scene.things):
            assert thing.radius - 1e-9 <= thing.y <= 1 - thing.radius + 1e-9
            for other in scene.things[:number]:
                distance = np.hypot(thing.x - other.x, thing.y - other.y)
                assert distance >= (1 - rules.overlap) * (thing.radius + other.radius) - 1e-9


def test_a_square_is_drawn_where_it_stands():
    scene = scene_of(Thing("square", "red", "large", 0.5, 0.25), aspect=1.5)
    view = render(scene, 200)
    assert view.image.shape == (200, 300, 3)
    half = 0.85 * 0.19 * 200
    np.testing.assert_allclose(view.boxes[0], [100 - half, 50 - half, 100 + half, 50 + half], atol=1)
    assert tuple(view.image[50, 100]) == COLOURS["red"] and tuple(view.image[150, 250]) == GREY[0]
    inside = np.all(view.image == COLOURS["red"], axis=-1)
    assert np.array_equal(inside & view.masks[0], inside)  # full colour only inside the mask


def test_later_things_hide_earlier_ones_and_rings_have_a_hole():
    circle = Thing("circle", "blue", "large", 0.5, 0.5)
    ring = Thing("ring", "red", "large", 0.5, 0.5)
    small = Thing("circle", "green", "small", 0.5, 0.5)
    view = render(scene_of(circle, ring, small), 90)
    assert not np.any(view.masks.sum(0) > 1)  # each pixel has one owner
    assert view.masks[2, 45, 45] and not view.masks[:2, 45, 45].any()
    assert view.masks[0].any()  # between the small circle and the ring
    hidden = render(scene_of(small, circle), 90)
    assert not hidden.masks[0].any() and np.all(hidden.boxes[0] == 0)


def test_a_rendering_scales():
    scene = sample(np.random.default_rng(4), LEVELS["full"])
    small, large = render(scene, 60), render(scene, 240)
    np.testing.assert_allclose(small.boxes * 4, large.boxes, atol=6)
    shrunk = large.masks[:, 2::4, 2::4]
    assert np.mean(shrunk == small.masks) > 0.98


def test_people_have_left_on_the_right_and_hidden_keypoints():
    joints = pose(np.random.default_rng(0))
    assert joints[INDEX["left shoulder"]][0] > joints[INDEX["right shoulder"]][0]
    assert joints[INDEX["nose"]][1] < joints[INDEX["left hip"]][1] < joints[INDEX["left ankle"]][1]
    person = Thing("person", "red", "large", 0.5, 0.5, joints=joints)
    free = render(scene_of(person), 120)
    points, visibility = keypoints(scene_of(person), 0, free)
    assert np.all(visibility == 2)
    x, y = points.astype(int).T
    assert free.masks[0, y, x].mean() > 0.85  # ears lie on the rim of the head
    covered = scene_of(person, Thing("circle", "blue", "large", 0.5, 0.5 - 0.7 * person.radius))
    _, visibility = keypoints(covered, 0, render(covered, 120))
    assert visibility[INDEX["nose"]] == 1 and visibility[INDEX["left ankle"]] == 2
    outside = dataclasses.replace(person, x=-0.02)
    points, visibility = keypoints(scene_of(outside), 0, render(scene_of(outside), 120))
    assert visibility[INDEX["nose"]] == 0 and np.all(points[INDEX["nose"]] == 0)


def test_questions_are_answered_from_the_scene():
    circle = Thing("circle", "red", "small", 0.2, 0.2)
    star = Thing("star", "blue", "large", 0.7, 0.75)
    scene = scene_of(circle, star)
    expected = {
        "What colour is the circle?": "Red.",
        "What shape is blue?": "A star.",
        "Is the star small or large?": "Large.",
        "Where is the circle?": "Top left.",
        "How many shapes are there?": "Two.",
        "Is there a red circle?": "Yes.",
        "Is there a red star?": "No.",
        "Is the circle left of the star?": "Yes.",
        "Is the circle below the star?": "No.",
        "What is right of the circle?": "A blue star.",
    }
    asked = {}
    for kind, question in QUESTIONS.items():
        for seed in range(200):
            pair = question(scene, np.random.default_rng(seed))
            if pair:
                assert asked.setdefault(pair[0], pair[1]) == pair[1], kind
    assert asked.items() >= expected.items()
    for question, answer in asked.items():  # nothing is said to be there that is not
        if match := re.match(r"Is there an? (\w+) (\w+)\?", question):
            there = match.groups() in {("red", "circle"), ("blue", "star")}
            assert answer == ("Yes." if there else "No.")


def test_no_question_where_the_answer_is_not_certain():
    rng = np.random.default_rng(0)
    twins = scene_of(Thing("circle", "red", "small", 0.3, 0.3), Thing("circle", "red", "large", 0.35, 0.8))
    for kind in ("colour", "shape", "size", "where", "relation", "neighbour", "read"):
        assert QUESTIONS[kind](twins, rng) is None
    assert QUESTIONS["count_kind"](twins, rng) == ("How many circles are there?", "Two.")
    near = scene_of(Thing("circle", "red", "small", 0.5, 0.3), Thing("star", "red", "small", 0.55, 0.8))
    assert place(near.things[0], near) is None
    assert all(
        "left" not in (QUESTIONS["relation"](near, np.random.default_rng(i)) or "")[0] for i in range(9)
    )


def test_answers_need_the_picture():
    train, test = (load(task="chat", tile_size=14, split=split) for split in ("train", "heldout"))
    seen = defaultdict(Counter)
    for index in range(1000):
        (_, question), (_, answer) = train[index].turns
        seen[question.removeprefix("<image>\n")][answer] += 1
    hits = 0
    for index in range(300):
        (_, question), (_, answer) = test[index].turns
        known = seen[question.removeprefix("<image>\n")]
        hits += bool(known) and known.most_common(1)[0][0] == answer
    # The most frequent answer to each question is right in 31 % of 1500 held-out questions.
    assert hits / 300 < 0.42


def test_captions_and_expressions():
    scene = scene_of(
        Thing("circle", "red", "small", 0.8, 0.2),
        Thing("ring", "orange", "large", 0.2, 0.2),
        Thing("circle", "blue", "small", 0.3, 0.8),
        Thing("circle", "blue", "small", 0.7, 0.8),
    )
    assert caption(scene) == (
        "A large orange ring, a small red circle, a small blue circle and a small blue circle."
    )
    assert expressions(scene, 0)[0] == "red circle" and "ring" in expressions(scene, 1)
    assert expressions(scene, 2) == ["circle furthest to the left"]
    assert expressions(scene, 3) == []  # neither alone in its attributes nor furthest to a side


@pytest.mark.parametrize("index", range(25))
def test_expressions_fit_one_thing(index):
    scene = sample(np.random.default_rng(index), LEVELS["full"])
    for number, thing in enumerate(scene.things):
        for phrase in expressions(scene, number):
            if "furthest" in phrase:
                continue
            fits = [
                other
                for other in scene.things
                for size in (False, True)
                for colour in (False, True)
                if name(other, size=size, colour=colour) == phrase
            ]
            assert fits == [thing], phrase


@pytest.mark.parametrize("task", ["det", "grd", "seg", "pose"])
def test_perception_targets(task):
    records = source(task)
    for index in range(8):
        example = records[index]
        (targets,) = example.targets.values()
        height, width = targets["image"].shape[:2]
        links = re.findall(r"\[(DET|GRD|SEG|POSE)\]", example.turns[1][1])
        names = example.meta["classes"]
        assert links.count("POSE") == len(example.meta.get("keypoints", ()))
        assert len(links) - links.count("POSE") == len(names)
        assert targets["labels"].max() < len(names)
        for box, mask, area in zip(targets["boxes"], targets["masks"], targets["area"], strict=True):
            ys, xs = np.nonzero(mask)
            corners = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            low, high = (box[:2] - box[2:] / 2) * (width, height), (box[:2] + box[2:] / 2) * (width, height)
            np.testing.assert_allclose([*low, *high], corners, atol=1e-3)
            assert area == pytest.approx(len(xs) / (height * width))


def test_labels_name_the_class_of_each_object():
    records = source("det")
    for index in range(20):
        example = records[index]
        scene, _, _ = records.draw(index)
        targets = example.targets["grounding_dino"]
        asked = [example.meta["classes"][label] for label in targets["labels"]]
        visible = render(scene, 70).masks.any((1, 2))
        assert asked == [t.kind for t, seen in zip(scene.things, visible, strict=True) if seen]
        assert set(example.meta["classes"]) <= set(KINDS)
        assert f"{', '.join(example.meta['classes'])}" in example.turns[0][1]


def test_pose_keypoints_are_in_the_order_of_the_links():
    example = source("pose")[2]
    targets, names = example.targets["unipose"], example.meta["keypoints"]
    assert re.findall(r"([a-z]+(?: [a-z]+)?)\[POSE\]", example.turns[1][1].split("oint")[-1])[-1] == names[-1]
    assert targets["keypoints"].shape == (len(targets["boxes"]), len(names), 2)
    assert set(names) <= set(KEYPOINTS) and set(np.unique(targets["visibility"])) <= {0, 1, 2}
    scene, _, _ = source("pose").draw(2)
    person = next(t for t in scene.things if t.kind == "person")
    nose = np.array(person.joints[KEYPOINTS.index(names[0])]) * person.radius + (person.x, person.y)
    np.testing.assert_allclose(targets["keypoints"][0, 0], nose / (scene.aspect, 1), atol=1e-6)


def test_a_question_asks_for_so_many_names():
    """Classes that are there are always among them; half the questions ask for as many as they may."""
    for task, level, most in (("det", "bold", 5), ("seg", "bold", 5), ("pose", "portrait", 4)):
        examples = [
            load(task=task, tile_size=16, decoder_size=32, level=level, names=most)[i] for i in range(40)
        ]
        names = [example.meta["keypoints" if task == "pose" else "classes"] for example in examples]
        assert max(map(len, names)) == most and min(map(len, names)) < most
        assert 10 < sum(len(one) == most for one in names) < 40
        assert len({name for one in names for name in one}) == (17 if task == "pose" else len(KINDS))
    crowd = load(task="det", tile_size=16, decoder_size=32, level="full", names=1)
    for index in range(20):
        present = {thing.kind for thing in crowd.draw(index)[0].things}
        assert set(crowd[index].meta["classes"]) == present


def test_edits_change_what_they_say():
    kinds = Counter()
    records = source("edit")
    for index in range(40):
        targets = records[index].targets["instruct_pix2pix"]
        words = targets["caption"].split()[0]
        kinds[words] += 1
        assert targets["input"].shape == targets["image"].shape
        changed = np.any(targets["input"] != targets["image"], axis=-1)
        assert 0 < changed.mean() < 0.35  # one thing, not the whole picture
    assert set(kinds) == {"Make", "Turn", "Remove", "Add"}


def test_generation_has_no_picture_and_regions_are_marked():
    example = source("t2i")[0]
    assert example.images == [] and "<image>" not in example.turns[0][1]
    assert example.turns[1][1].count("[EMB]") == 64
    for task, decoder, token in (("t2i", "stable_diffusion", "GEN"), ("edit", "instruct_pix2pix", "EDIT")):
        example = source(task)[0]
        words = example.targets[decoder]["caption"]
        assert words.endswith(".") and f" {words[:-1]}[{token}][EMB]" in example.turns[1][1]
    example = source("region", turns=3)[1]
    asked = "".join(text for _, text in example.turns)
    assert asked.count("<region>") == len(example.regions) and example.regions.any((1, 2)).all()


def test_wide_scenes_can_be_tiled():
    records = load(task="chat", tile_size=56, level="full", image_mode="anyres", max_tiles=4)
    counts = {len(records[index].images[0]) for index in range(12)}
    assert 1 in counts and max(counts) > 1


def test_pictures_with_regions_are_stretched():
    modes = {task: load(task=task, tile_size=28, image_mode="pad").tiling.mode for task in ("chat", "region")}
    assert modes == {"chat": "pad", "region": "stretch"}
    assert load(task="region", tile_size=28).tiling.mode == "anyres"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "draw"}, "field 'task': unknown value 'draw'.*use one of chat"),
        ({"level": "hard"}, "field 'level'"),
        ({"split": "test"}, "field 'split'"),
        ({"form": "line"}, "field 'form'"),
        ({"questions": ("colour", "why")}, "field 'questions': unknown value 'why'"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(DataError, match=message):
        load(**{"task": "chat", "tile_size": 14, **options})


def test_a_level_that_cannot_serve_the_task():
    with pytest.raises(DataError, match=r"no scene of level 'easy' suits the task 'pose'.*Remedy"):
        load(task="pose", tile_size=14, level="easy")[0]


def test_pairs_that_are_held_out_are_never_in_training():
    pairs = {}
    for split in ("train", "heldout"):
        source = load(task="t2i", tile_size=16, level="one", split=split, novel=True, decoder_size=16)
        pairs[split] = {pair for i in range(300) for pair in source[i].meta["things"]}
    assert not pairs["train"] & pairs["heldout"]
    for part in (0, 1):  # every kind and every colour is in both
        assert {pair[part] for pair in pairs["train"]} == {pair[part] for pair in pairs["heldout"]}


def test_edits_of_training_lead_to_no_pair_that_is_held_out():
    source = load(task="edit", tile_size=16, level="close", novel=True, decoder_size=16)
    things = [t for i in range(200) for s in source.draw(i)[2].meta["scenes"] for t in s.things]
    assert len({(t.kind, t.colour) for t in things}) > 10 and not any(map(is_novel, things))
