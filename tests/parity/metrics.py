# SPDX-License-Identifier: Apache-2.0
"""Scores and answers: metrics.json (language benchmarks) and metrics.npz (what decoders predict)."""

import json
import pathlib
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from tests.parity import Case
from vllm2_jax.evals import documents, names, pose, postprocess, vqa, yes_no
from vllm2_jax.evals.choice import parse_choice
from vllm2_jax.evals.interactive import iou
from vllm2_jax.evals.metric import Question
from vllm2_jax.evals.objects import mask_overlap
from vllm2_jax.ops.select import best_pairs

# The golden file leaves the options of its multiple-choice questions out; these have what its answers name.
_OPTIONS = {"A": "red", "B": "blue", "C": "green", "D": "black"}


def cases(folder: pathlib.Path) -> Iterator[Case]:
    yield from _words(json.loads((folder / "metrics.json").read_text()))
    data = np.load(folder / "metrics.npz")
    yield from _decoded(data)
    away = pose.distances(data["pck_pred"], data["pck_gt"], data["pck_mask"], data["pck_norm"][:, 0])
    shares = pose.accuracies(away, 0.2)
    yield "PCK of keypoints", np.nan_to_num(shares, nan=-1), data["pck_acc"]
    yield "PCK", np.nanmean(shares), data["pck_avg"]
    yield "PCK keypoints seen", np.isfinite(shares).sum(), data["pck_cnt"]
    yield from overlaps(data["iou_a"], data["iou_b"], [data[k] for k in ("iou", "iou_inter", "iou_union")])


def overlaps(a: np.ndarray, b: np.ndarray, want: Sequence[np.ndarray]) -> Iterator[Case]:
    """IoU, intersection and union of pairs of masks."""
    shared, whole = np.array([mask_overlap(x, y) for x, y in zip(a, b, strict=True)]).T
    yield "mask IoU", iou(shared, whole), want[0]
    yield "mask intersection", shared, want[1]
    yield "mask union", whole, want[2]


def _words(data: dict) -> Iterator[Case]:
    for text, punctuation, words in data["vqa_process"]:
        found = vqa.normalise_punctuation(text)
        yield f"VQA punctuation {text!r}", *_texts([found], [punctuation])
        yield f"VQA words {text!r}", *_texts([vqa.normalise_words(found)], [words])
    asked = data["vqa_eval"]
    got = [100 * vqa.accuracy(answer, said) for answer, said in asked["cases"]]
    yield "VQA accuracy", np.array(got), np.array(list(asked["per_question"].values()))
    # Questions take turns between the two types; the script rounds to two decimals.
    questions = [Question(tuple(said), kind=f"t{i % 2}") for i, (_, said) in enumerate(asked["cases"])]
    scores = vqa.vqa()((answer for answer, _ in asked["cases"]), questions)
    want = [asked["accuracy"]["overall"], *asked["accuracy"]["perQuestionType"].values()]
    yield "VQA scores", np.round([100 * value for value in scores.values()], 2), np.array(want)

    for target, prediction, right in data["relaxed_correctness(target,prediction)"]:
        yield f"relaxed {target} {prediction}", *_same(documents.relaxed_correct(target, prediction), right)
    for a, b, distance in data["levenshtein"]:
        yield f"levenshtein {a!r} {b!r}", *_same(documents.levenshtein(a, b), distance)
    truths = [Question(tuple(entry["answers"])) for entry in data["anls"]["gt"]]
    answers = [entry["answer"] for entry in data["anls"]["pred"]]
    each = [documents.similarity(a, truth.answers) for a, truth in zip(answers, truths, strict=True)]
    yield "ANLS of answers", np.array(each), np.array(list(data["anls"]["per_sample"].values()), np.float64)
    yield "ANLS", np.array(documents.anls()(answers, truths)["anls"]), np.array(data["anls"]["score"])

    poped = data["pope"]
    yield "POPE answers", *_texts([yes_no.parse_pope(text) for text in poped["text"]], poped["parsed"])
    scores = yes_no.pope()(poped["text"], [Question((label,)) for label in poped["label"]])
    printed = [float(value) for value in poped["printed"].strip().splitlines()[-1].split(", ")]
    order = ("F1", "accuracy", "precision", "recall", "yes")
    yield "POPE scores", np.round([scores[f"pope/{key}"] for key in order], 3), np.array(printed)

    for text, *wanted in data["choice_post_process"]:
        found = parse_choice(text, _OPTIONS)
        yield f"choice {text!r}", *_texts([found] * len(wanted), wanted)
    for text, cleaned in data["mme_post_processing"]:
        yield f"MME answer {text!r}", *_texts([yes_no.clean_mme(text)], [cleaned])
    for text, parsed in data["mme_parse"]:
        yield f"MME {text!r}", *_texts([yes_no.parse_mme(text)], [parsed])
    for a, b, value in data["semantic_iou"]:
        yield f"words {a!r} {b!r}", np.array(names.word_iou(a, b)), np.array(value)
    for text, cleaned in data["clean_string"]:
        yield f"name {text!r}", *_texts([names.clean_name(text)], [cleaned])


def _decoded(data: dict[str, np.ndarray]) -> Iterator[Case]:
    """Boxes, masks, classes of pixels and keypoints from raw predictions of two pictures."""
    classes = 1 + int(max(data["det0/labels"].max(), data["det1/labels"].max()))
    ids = np.unique(np.concatenate([data["pose0/labels"], data["pose1/labels"]]))  # in the order of the links
    for i in range(len(data["logits"])):
        size, inside = (tuple(int(side) for side in data[key][i][:2]) for key in ("ori_shape", "img_shape"))
        logits = jnp.asarray(data["logits"][i : i + 1])
        boxes = postprocess.boxes_in_pixels(data["boxes"][i], size)
        for name, count in (("det", len(data[f"det{i}/labels"])), ("seg", len(data[f"seg{i}/labels"]))):
            scores, queries, labels = (
                np.asarray(x)[0] for x in best_pairs(logits[..., :classes], logits.shape[1] * classes)
            )
            found = {"scores": scores, "labels": labels, "boxes": boxes[queries]}
            if name == "seg":
                found["masks"] = postprocess.instance_masks(data["masks"][i][queries], inside, size)
            yield from same_ranking(f"{name}{i}", found, data, count)
        probability, masks = _sigmoid(data["logits"][i, :, :classes]), _sigmoid(data["masks"][i])
        maps = np.einsum("qk,qhw->khw", probability, masks)
        yield f"semseg{i}", postprocess.class_map(maps, inside, size), data[f"semseg{i}"]

        scores, queries, labels = (np.asarray(x)[0] for x in best_pairs(logits[..., : len(ids)], 10**6))
        points = data[f"pose{i}/keypoints"].shape[1] // 3
        places = data["keypoints"][i][queries, : 2 * points].reshape(len(queries), points, 2)
        places = np.insert(places * np.array(size[::-1], np.float32), 2, 1, axis=2).reshape(len(queries), -1)
        found = {"scores": scores, "labels": ids[labels], "boxes": boxes[queries], "keypoints": places}
        yield from same_ranking(f"pose{i}", found, data, len(data[f"pose{i}/labels"]))


def same_ranking(
    name: str, found: dict[str, np.ndarray], data: dict[str, np.ndarray], count: int
) -> Iterator[Case]:
    """Our full ranking against the first `count` of the official one, which orders equal scores at will.

    For each official entry the one of ours with the same score, label and box is taken.
    """
    want = {key: data[f"{name}/{key}"] for key in found}
    rows = []
    for n in range(count):
        same = np.isclose(found["scores"], want["scores"][n], rtol=0, atol=1e-6)
        same &= found["labels"] == want["labels"][n]
        same &= np.isclose(found["boxes"], want["boxes"][n], atol=1e-3).all(axis=1)
        rows.append(int(np.argmax(same)) if same.any() else n)
    yield f"{name} rows once each", np.array(len(set(rows))), np.array(count)
    yield f"{name} ranking", found["scores"][:count], want["scores"]
    for key, values in want.items():
        yield f"{name} {key}", found[key][rows].astype(values.dtype), values


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _same(got: object, want: object) -> tuple[np.ndarray, np.ndarray]:
    return np.array(got), np.array(want)


def _texts(got: Sequence[str], want: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as numbers, which are equal or not."""
    first, second = ("\n".join(texts).encode() for texts in (got, want))
    return np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8)
