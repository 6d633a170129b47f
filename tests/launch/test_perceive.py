# SPDX-License-Identifier: Apache-2.0
"""From examples with links to scores: coordinates, names and order on the way through the decoders."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.collate_perception import shrink
from data_pipelines.conversation import link
from data_pipelines.datasets.synthetic import load
from launch import build, evaluate, predict
from launch.heldout import Heldout
from launch.manner import manner_of
from launch.perceive import FOR_CPU, Perceiver, read
from launch.report import write_report
from launch.sights import First, look, read_sights
from launch.truth import classes_of, objects_of
from tests.launch import small_decoders
from tests.weights import randomized
from vllm2_jax.evals import EVALS
from vllm2_jax.evals.objects import decode

SQUARE = 96


def source(task):
    return load(task=task, tile_size=56, decoder_size=72, level="people" if task == "pose" else "medium")


def told(example, decoder):
    """What a perfect decoder would answer: the targets, as logits where predictions are logits."""
    targets = example.targets[decoder]
    height, width = targets["image"].shape[:2]
    inside = tuple(round(side * SQUARE / max(height, width)) for side in (height, width))
    found = {
        "scores": np.linspace(0.9, 0.6, len(targets["boxes"]), dtype=np.float32),
        "labels": targets["labels"],
        "boxes": targets["boxes"],
    }
    if "keypoints" in targets:
        found["keypoints"] = targets["keypoints"]
    masks = np.full((len(targets["masks"]), SQUARE // 4, SQUARE // 4), -9.0, np.float32)
    for logits, mask in zip(masks, targets["masks"], strict=True):
        cells = shrink(mask, inside[0] / 4, inside[1] / 4)
        logits[: cells.shape[0], : cells.shape[1]] = 18.0 * cells - 9.0
    found["masks"] = masks
    found["classes"] = np.zeros((len(example.meta["classes"]), SQUARE // 4, SQUARE // 4), np.float32)
    for label, logits in zip(targets["labels"], masks, strict=True):
        found["classes"][label] += logits > 0
    return read(found, 0, example, decoder, inside)


@pytest.mark.parametrize("task", ["det", "grd", "seg", "pose"])
def test_what_is_there_scores_best(task):
    decoder = "unipose" if task == "pose" else "grounding_dino"
    examples = [source(task)[i] for i in range(6)]
    seen = [told(example, decoder) for example in examples]
    truths = [objects_of(example, decoder) for example in examples]

    def score(name):
        return EVALS[name]([one.objects for one in seen], truths)

    if task == "grd":
        scores = score("refer")
        assert scores["refer/box/mIoU"] == pytest.approx(1.0) and scores["refer/mask/mIoU"] > 0.75
    elif task == "seg":
        maps = [classes_of(example, decoder) for example in examples]
        scores = EVALS["semantic"]([one.classes for one in seen], maps)
        # Thin things lose pixels at a quarter of the resolution, and background has no class of its own.
        assert scores["semantic/mAcc"] > 0.9
    else:
        assert score("box")["box/AP"] == pytest.approx(1.0)
        assert score("count") == {"count/MAE": 0.0, "count/RMSE": 0.0, "count/exact": 1.0}
        if task == "det":
            assert score("mask")["mask/AP50"] > 0.9
        else:
            # Every person of whom a keypoint was asked for is found with all of them.
            assert score("keypoints")["keypoints/AP"] == pytest.approx(1.0)


def test_evaluated_at_the_size_of_the_original_picture():
    example = source("det")[0]
    targets = example.targets["grounding_dino"]
    height, width = (3 * side for side in targets["image"].shape[:2])
    corners = objects_of(example, "grounding_dino").boxes * 3
    polygons = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in corners.tolist()]
    given = {
        "size": (height, width),
        "boxes": corners,
        "labels": [example.meta["classes"][label] for label in targets["labels"]],
        "segmentations": polygons,
        "crowd": np.zeros(len(corners), bool),
    }
    example = dataclasses.replace(example, meta={**example.meta, "truth": given})
    truth, seen = objects_of(example, "grounding_dino"), told(example, "grounding_dino")
    assert EVALS["box"]([seen.objects], [truth])["box/AP"] == pytest.approx(1.0)
    assert decode(seen.objects.masks[0]).shape == decode(truth.masks[0]).shape == (height, width)


def test_a_cpu_converts_one_layer_at_a_time():
    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    x, kernels = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((4, 64), (32, 64, 64)))
    memory = [
        jax.jit(layers, compiler_options=options).lower(x, kernels).compile().memory_analysis()
        for options in ({}, FOR_CPU)
    ]
    first, second = (found.temp_size_in_bytes for found in memory)
    # If the first one needs no room any more for all layers in float32, the options have become superfluous.
    assert second < 8 * 64 * 64 * 4 < 32 * 64 * 64 * 4 < first


@pytest.fixture(scope="module")
def run():
    return build.build_run(small_decoders.config())


@pytest.fixture(scope="module")
def model(run):
    return randomized(run.plan.make_model, std=0.1)


@pytest.fixture(scope="module")
def pose(run):
    (sight,) = (sight for sight in read_sights(small_decoders.config(), run) if sight.name == "pose")
    return sight


def test_rows_do_not_depend_on_each_other(model, pose):
    class Backwards:
        def __len__(self):
            return len(pose.examples)

        def __getitem__(self, index):
            return pose.examples[len(self) - 1 - index]

    forth, back = (
        {s.example.record: s for s in pose.perceiver(model, x)} for x in (pose.examples, Backwards())
    )
    assert list(forth) == ["0", "1", "2"] and list(back) == ["2", "1", "0"]
    for record, seen in forth.items():
        other = back[record].objects
        np.testing.assert_allclose(seen.objects.boxes, other.boxes, atol=1e-2)
        np.testing.assert_allclose(seen.objects.scores, other.scores, atol=1e-4)
        asked = len(seen.example.meta["keypoints"])
        drawn = seen.objects.keypoints.any(axis=(0, 2))
        assert drawn.sum() == asked and seen.objects.masks is None


def test_what_finds_no_room_is_counted(run, model, pose):
    perceiver = pose.perceiver
    shape = dataclasses.replace(perceiver.shape, links={"det": 1, "pose": 2})
    narrow = dataclasses.replace(
        pose, perceiver=Perceiver(run, shape, 2), examples=First(pose.examples.source, 2), metrics=("box",)
    )
    asked = [len(pose.examples[i].meta["keypoints"]) for i in range(2)]
    first, scores = look(narrow, model)
    assert scores["pose/dropped_links"] == sum(max(0, count - 2) for count in asked) > 0
    assert len(first) == 2 and "pose/box/AP" in scores


def test_report_of_decoders(run, model, tmp_path):
    config = small_decoders.config()
    with config.unlocked():
        for task in ("chat", "grd", "seg"):
            del config.eval.tasks[task]
    results = Heldout(config, run)(model)
    wanted = {"det/box/AP", "det/mask/AP", "det/count/MAE", "pose/keypoints/AP", "pose/box/AP"}
    assert wanted <= set(results.scores)
    assert "det/box/AP50" in evaluate.table({"trained": results.scores})
    write_report(tmp_path / "report.html", results, {"trained": results.scores}, [])
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2 * 2 * 3  # found and truth of three pictures, two tasks


def test_prediction_of_poses(run, model, tmp_path):
    asked = predict.Asked("pose", ("person",), ("nose", "left eye", "right eye"))
    picture = source("pose")[0].targets["unipose"]["image"][:70, :60]
    capacities = small_decoders.tasks("train")["pose"]["capacities"]
    manner = manner_of(small_decoders.config(), "pose", "unipose")
    seen, same = predict.predict(run, model, picture, asked, capacities, manner)
    lines = predict.write(tmp_path / "found", seen, picture, same, 0.0)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["size"] == [70, 60] and found["categories"][0]["name"] == "person"
    assert len(found["annotations"]) == len(lines) - 1 == 6  # as many as the decoder has instances
    assert all(len(entry["keypoints"]) == 9 for entry in found["annotations"])
    assert Image.open(tmp_path / "found.png").size == (60, 70)
    # An untrained model writes no links.
    with pytest.raises(ValueError, match="calls no decoder"):
        predict.predict(run, model, picture, asked, capacities, manner, generated=True)


def test_prediction_of_classes(run, model, tmp_path):
    asked = predict.Asked("seg", ("circle", "square"))
    picture = source("seg")[0].targets["grounding_dino"]["image"]
    capacities = small_decoders.tasks("train")["det"]["capacities"]
    manner = manner_of(small_decoders.config(), "seg", "grounding_dino")
    seen, same = predict.predict(run, model, picture, asked, capacities, manner)
    lines = predict.write(tmp_path / "found", seen, picture, same, 0.0)
    assert lines[0].startswith("circle ") and lines[1].startswith("square ")
    labels = np.asarray(Image.open(tmp_path / "found_classes.png"))
    assert labels.shape == picture.shape[:2] and set(np.unique(labels)) <= {0, 1}


@pytest.mark.parametrize(
    "task, classes, keypoints, message",
    [
        ("det", (), (), "name what to look for"),
        ("grd", ("a", "b"), (), "one --phrase"),
        ("pose", ("person",), (), "pose needs them"),
        ("det", ("person",), ("nose",), "belong to pose"),
    ],
)
def test_questions_that_cannot_be_asked(task, classes, keypoints, message):
    with pytest.raises(ValueError, match=message):
        predict.Asked(task, classes, keypoints)


def test_a_run_without_the_decoder():
    with pytest.raises(ValueError, match="no task with the decoder 'unipose'"):
        predict.capacities_of({"chat": {"rows": 1}}, "unipose")


def test_what_a_written_answer_asks_for():
    text = f"Found: {link('dog', 'det')}, {link('big cat', 'det')}. Keypoints: {link('left eye', 'pose')}."
    asked = predict.answered(text, predict.Asked("pose", ("x",), ("y",)))
    assert asked == predict.Asked("pose", ("dog", "big cat"), ("left eye",))
    phrase = predict.Asked("grd", ("the dog",))
    assert predict.answered(f"It is {link('', 'grd')}.", phrase) == phrase
    with pytest.raises(ValueError, match="calls no decoder for --task det"):
        predict.answered("Nothing here.", predict.Asked("det", ("dog",)))
