# SPDX-License-Identifier: Apache-2.0
"""Lets a run's decoder look at a picture (boxes, masks or keypoints as COCO's JSON, and drawn), or paint one.

    python -m launch.predict --workdir RUN --image photo.jpg --task det --classes "person, dog"
    python -m launch.predict --workdir RUN --image photo.jpg --task grd --phrase "the dog on the left"
    python -m launch.predict --workdir RUN --image photo.jpg --task pose --classes person \\
        --keypoints "nose, left eye, right eye"
    python -m launch.predict --workdir RUN --task gen --prompt "A large red star."
    python -m launch.predict --workdir RUN --image photo.jpg --task edit --prompt "Turn the star into a ring."

Tasks: det (boxes), ins (boxes and masks), grd (what a phrase refers to), seg (a class for every pixel), pose,
gen (a picture from a prompt), edit (a picture changed by an instruction; its central square).
The answer that names all classes is put in the model's mouth, as in the official evaluations; with --generate
the model writes it itself. Writes OUT/<picture>.json and OUT/<picture>.png, for gen and edit a picture alone.
Only the decoder of the task is loaded.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.collate import TaskShape, columns_of
from data_pipelines.conversation import link
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.images import Tiling, load_image
from launch.answer import AnswerConfig, Answerer
from launch.build import Run
from launch.cost import timed
from launch.draw import draw_classes, draw_objects
from launch.manner import Manner, manner_of
from launch.paint import PAINTED, Wish, paint
from launch.perceive import Perceiver, Seen
from launch.saved import saved_config, saved_model, saved_run
from vllm2_jax.decoders.diffusion.samplers import SAMPLERS
from vllm2_jax.evals.coco import results
from vllm2_jax.model import VisionLLMv2
from vllm2_jax.tokens import LINKS, SPECIAL_TOKENS
from vllm2_jax.train.paths import make_folder


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked: kind of link for the classes, who answers, what is kept."""

    token: str
    decoder: str = "grounding_dino"
    masks: bool = False
    maps: bool = False
    best: bool = False  # only the best object is an answer


TASKS: dict[str, Task] = {
    "det": Task("det"),
    "ins": Task("det", masks=True),
    "grd": Task("grd", masks=True, best=True),
    "seg": Task("seg", maps=True),
    "pose": Task("det", decoder="unipose"),
}


# Options that only some tasks have.
_TASKS_OF: dict[str, tuple[str, ...]] = {
    "classes": tuple(TASKS),
    "phrase": ("grd",),
    "keypoints": ("pose",),
    **dict.fromkeys(("prompt", "sampler", "steps", "guidance"), tuple(PAINTED)),
    "image_guidance": ("edit",),
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to look for.

    Attributes:
      task: a key of `TASKS`.
      classes: names, or the one phrase of "grd".
      keypoints: names, for "pose".
    """

    task: str
    classes: tuple[str, ...]
    keypoints: tuple[str, ...] = ()

    def __post_init__(self):
        wrong = None
        if not self.classes or not all(self.classes):
            wrong = "name what to look for: --classes, or --phrase for grd"
        elif self.task == "grd" and len(self.classes) > 1:
            wrong = "grd takes one --phrase"
        elif (self.task == "pose") != bool(self.keypoints):
            wrong = "--keypoints belong to pose, and pose needs them"
        if wrong:
            raise ValueError(f"--task {self.task}: {wrong}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m launch.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--workdir", required=True, help="run whose newest checkpoint looks")
    add("--image", type=pathlib.Path, help="the picture; all tasks but gen need one")
    add("--task", required=True, choices=[*TASKS, *PAINTED])
    add("--classes", type=names, default=(), help='what to look for: "person, dog"')
    add("--phrase", default="", help="what grd looks for")
    add("--keypoints", type=names, default=(), help='what pose looks for: "nose, left eye"')
    add("--prompt", default="", help="what gen paints and edit changes")
    add("--sampler", choices=SAMPLERS, help="of gen and edit; the run's own by default")
    add("--steps", type=int, help="of the sampler")
    add("--guidance", type=float, help="how far the prompt pushes a picture; 1 is not at all")
    add("--image_guidance", type=float, help="how far the picture to edit pushes")
    add("--seed", type=int, default=0, help="of the noise of gen and edit")
    add("--generate", action="store_true", help="the model writes the answer itself")
    add("--threshold", type=float, default=0.3, help="least score of what is drawn and written")
    add("--max_tiles", type=int, help="tiles the picture is cut into at most; as in training by default")
    add("--strategy", default="single", help="how the model is laid over the devices")
    add("--dtype", choices=("float32", "bfloat16"), help="of all parameters; as they are stored by default")
    add("--measure", action="store_true", help="print time and memory of each step")
    add("--out", type=pathlib.Path, default=pathlib.Path("predictions"), help="folder for what is found")
    return made


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main() -> int:
    """Prints what is found and where it is written; 2 if the question cannot be asked."""
    args = parser().parse_args()
    logging.set_verbosity(logging.WARNING)
    try:
        check_options(args)
        lines = paint_to_file(args) if args.task in PAINTED else look_to_files(args)
    except (DataError, ValueError, FileNotFoundError) as error:
        print(f"launch.predict: {error}", file=sys.stderr)
        return 2
    for line in lines:
        print(line)
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError for an option that the task does not have, or a number that is impossible."""
    for name, tasks in _TASKS_OF.items():
        if getattr(args, name) not in (None, "", ()) and args.task not in tasks:
            raise ValueError(
                f"--{name} is for --task {' or '.join(tasks)}; leave it out of --task {args.task}"
            )
    if args.phrase and args.classes:
        raise ValueError("--phrase and --classes: give one of them")
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold={args.threshold}: give a score from 0 to 1")
    for name in ("guidance", "image_guidance"):
        if not math.isfinite(getattr(args, name) or 0):
            raise ValueError(f"--{name}={getattr(args, name)}: give a number")
    for name in ("steps", "max_tiles"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name}={value}: give at least 1")


def look_to_files(args: argparse.Namespace) -> Sequence[str]:
    """What the command line asks a decoder that sees; returns what to say."""
    asked = Asked(args.task, (args.phrase,) if args.phrase else args.classes, args.keypoints)
    if args.image is None:
        raise ValueError(f"--task {args.task}: give the --image to look at")
    drawn = args.out / f"{args.image.stem}.png"
    if drawn.resolve() == args.image.resolve():
        raise ValueError(f"the drawing would replace {args.image}: name another folder with --out")
    picture, decoder = load_image(args.image), TASKS[args.task].decoder
    capacities, manner, run, model = open_run(args, decoder)
    with timed("compile and look", args.measure):
        seen, asked = predict(run, model, picture, asked, capacities, manner, generated=args.generate)
    return write(args.out / args.image.stem, seen, picture, asked, args.threshold)


def paint_to_file(args: argparse.Namespace) -> Sequence[str]:
    """What the command line asks a decoder that paints; returns what to say."""
    wish = Wish(args.task, args.prompt, None if args.image is None else load_image(args.image))
    given = {name: getattr(args, name) for name in ("sampler", "steps", "guidance", "image_guidance")}
    sampling = {name: value for name, value in given.items() if value is not None}
    capacities, manner, run, model = open_run(args, PAINTED[args.task])
    options = {"seed": args.seed, "generated": args.generate}
    with timed("compile and paint", args.measure):
        picture = paint(run, model, wish, capacities, manner, sampling=sampling, **options)
    path = args.out / f"{'picture' if args.image is None else args.image.stem}_{args.task}.png"
    Image.fromarray(picture).save(path)
    return [f"wrote {path}"]


def open_run(args: argparse.Namespace, decoder: str) -> tuple[dict[str, Any], Manner, Run, VisionLLMv2]:
    """Capacities, how the run was asked, the run, and its model with one decoder."""
    config = saved_config(args.workdir)
    capacities = capacities_of(config.data.mixture.to_dict(), decoder)
    manner = manner_of(config, args.task, decoder)
    if args.max_tiles is not None:
        manner = dataclasses.replace(manner, max_tiles=args.max_tiles)
    run = saved_run(args.workdir, args.strategy, [decoder])
    make_folder(args.out, "--out")  # before the work whose result it gets
    with timed("load", args.measure):
        return capacities, manner, run, saved_model(args.workdir, run, args.dtype)


def predict(
    run: Run,
    model: VisionLLMv2,
    picture: UInt8[np.ndarray, "H W 3"],
    asked: Asked,
    capacities: Mapping[str, Any],
    manner: Manner,
    *,
    generated: bool = False,
) -> tuple[Seen, Asked]:
    """What a decoder finds in a picture, and what it looked for.

    Args:
      run, model: with this task's decoder.
      picture: any size.
      asked: what to look for.
      capacities: static sizes of the decoder's input.
      manner: how the run was asked.
      generated: the model writes the answer itself, and may call other links than those asked for.

    Raises:
      ValueError: the generated answer calls no link of this task.
    """
    task = TASKS[asked.task]
    tiles = Tiling("anyres", run.model.vision.image_size, manner.max_tiles)(picture)
    question, answer = manner.turns(slots(asked), links(asked, run, manner))
    question = "<image>\n" + question
    if generated:
        answer = write_answer(run, model, question, tiles)
        asked = answered(answer, asked)
    example = Example(
        source="command line",
        file="the command line",
        record=asked.task,
        turns=[("human", question), ("gpt", answer)],
        images=[tiles],
        targets={task.decoder: no_objects(manner.fitted(picture), asked) | {"enlarge": manner.size is None}},
        meta={
            "classes": list(asked.classes),
            "keypoints": list(asked.keypoints),
            "truth": {"size": picture.shape[:2]},
        },
    )
    places = {task.token: len(asked.classes)} | ({"pose": len(asked.keypoints)} if asked.keypoints else {})
    shape = TaskShape(1, task.decoder, len(tiles), links=places, capacities=capacities)
    # As many columns as this answer has: it may name more classes than the run's own rows have room for.
    roomy = dataclasses.replace(run.spec, length=1 << 20)
    columns = len(columns_of(example, run.tokenizer, roomy, [len(tiles)]).ids)
    run = dataclasses.replace(run, spec=dataclasses.replace(run.spec, length=-(-columns // 64) * 64))
    perceiver = Perceiver(run, shape, rows=1, masks=task.masks, classes=task.maps)
    (seen,) = perceiver(model, [example])
    return seen, asked


def capacities_of(mixture: Mapping[str, Any], decoder: str) -> dict[str, Any]:
    """Static sizes that the run trained this decoder with.

    Raises:
      ValueError: no task of the run has it.
    """
    for task in mixture.values():
        if task.get("decoder") == decoder:
            return dict(task["capacities"])
    raise ValueError(f"the run has no task with the decoder {decoder!r}: train one, or choose another --task")


def slots(asked: Asked) -> list[str]:
    """What fills the question."""
    return [", ".join(asked.classes), *([", ".join(asked.keypoints)] if asked.keypoints else [])]


def links(asked: Asked, run: Run, manner: Manner) -> list[str]:
    """What fills the answer: links, behind their names; those of keypoints always have one."""
    counts, token = run.model.queries, TASKS[asked.task].token
    classes = [link(manner.name(name), token, counts) for name in asked.classes]
    keypoints = [link(name, "pose", counts) for name in asked.keypoints]
    return [", ".join(classes), *([", ".join(keypoints)] if keypoints else [])]


def write_answer(run: Run, model: VisionLLMv2, question: str, tiles: UInt8[np.ndarray, "T S S 3"]) -> str:
    """The model's own answer, with the queries of its links written out."""
    answerer = Answerer(run, AnswerConfig(rows=1, tiles=len(tiles), max_new=512, max_links=1))
    example = Example("command line", "the command line", "question", [("human", question)], [tiles])
    (answer,) = answerer(model, [example])
    text = answer.marked
    for kind in LINKS:
        text = text.replace(SPECIAL_TOKENS[kind.token], link("", kind.token, run.model.queries))
    return text


def answered(answer: str, asked: Asked) -> Asked:
    """What an answer looks for: the names in front of its links.

    Raises:
      ValueError: it has no link of this task.
    """
    found: dict[str, list[str]] = {"pose": []}
    for name, token in re.findall(r"([^,.:\]\[]*)\[(DET|GRD|SEG|POSE)\]", answer):
        found.setdefault(token.lower(), []).append(name.strip())
    classes = found.get(TASKS[asked.task].token, [])
    if not classes:
        raise ValueError(f"the model's answer calls no decoder for --task {asked.task}: {answer!r}")
    if asked.task == "grd":
        classes = [*asked.classes, *classes[1:]]
    return dataclasses.replace(asked, classes=tuple(classes), keypoints=tuple(found["pose"]))


def no_objects(picture: UInt8[np.ndarray, "H W 3"], asked: Asked) -> dict[str, Any]:
    """Targets of a picture without known objects."""
    points = len(asked.keypoints)
    found: dict[str, Any] = {
        "image": picture,
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int64),
        "masks": np.zeros((0, *picture.shape[:2]), bool),
        "area": np.zeros(0, np.float32),
    }
    if points:
        found["keypoints"] = np.zeros((0, points, 2), np.float32)
        found["visibility"] = np.zeros((0, points), np.int32)
        found["keypoint_ids"] = np.arange(points)
    return found


def write(
    path: pathlib.Path, seen: Seen, picture: UInt8[np.ndarray, "H W 3"], asked: Asked, threshold: float
) -> Sequence[str]:
    """Writes `<path>.json` and `<path>.png` (and `<path>_classes.png` for "seg"); returns what to say."""
    task, objects = TASKS[asked.task], seen.objects
    if objects.keypoints is not None:  # there is room for more than were asked for
        objects = dataclasses.replace(objects, keypoints=objects.keypoints[:, : len(asked.keypoints)])
    objects = objects.first(1) if task.best else objects.above(threshold)
    kinds = list(dict.fromkeys(asked.classes))
    ids = {name: number for number, name in enumerate(kinds, start=1)}
    found = {
        "image": str(path.name),
        "size": list(picture.shape[:2]),
        "categories": [
            {"id": number, "name": name, "keypoints": list(asked.keypoints)} for name, number in ids.items()
        ],
        "annotations": results(objects, path.name, ids),
    }
    lines = [f"{label} {score:.3f}" for label, score in zip(objects.labels, objects.scores, strict=True)]
    if seen.classes is not None:
        Image.fromarray(seen.classes.labels.astype(np.uint8)).save(f"{path}_classes.png")
        drawn = draw_classes(picture, seen.classes)
        share = {n: float((seen.classes.labels == i).mean()) for i, n in enumerate(seen.classes.names)}
        lines = [f"{name} {value:.1%} of the picture" for name, value in share.items()]
    else:
        drawn = draw_objects(picture, objects, names=kinds, keypoints=asked.keypoints)
    pathlib.Path(f"{path}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    drawn.save(f"{path}.png")
    return [*lines, f"wrote {path}.json and {path}.png"]


if __name__ == "__main__":
    sys.exit(main())
