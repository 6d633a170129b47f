# SPDX-License-Identifier: Apache-2.0
"""Answers a question about pictures with the newest checkpoint of a run.

    python -m launch.generate --workdir runs/demo --image scene.png --question "What colour is the circle?"
    python -m launch.generate --workdir runs/demo --image scene.png --region 0.1,0.1,0.5,0.5 \\
        --question "What is <region>?"
    python -m launch.generate --workdir runs/paint --question "Paint this: A large red star." --out pictures

Every --image stands in front of the question unless the question places it with <image>. Every --region
is a box x1,y1,x2,y2 in parts of the last picture's width and height, written <region> in the question.
Where an answer calls a decoder that paints, its picture is written to the folder --out; an edit starts from
the last --image. Decoders that paint nothing are not loaded; --decoders= leaves out the others, too.
"""

import argparse
import dataclasses
import itertools
import pathlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from data_pipelines.conversation import region_text
from data_pipelines.errors import DataError
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Tiling, load_image
from data_pipelines.masks import box_in_tile
from launch.answer import AnswerConfig, Answerer
from launch.brush import Brush
from launch.build import Run
from launch.cost import timed
from launch.saved import saved_model, saved_run
from vllm2_jax.decoders.diffusion import PAINTERS
from vllm2_jax.decoders.diffusion.samplers import SAMPLERS
from vllm2_jax.tokens import LINKS
from vllm2_jax.train.paths import PathLike, make_folder

# Options of the command line that are keywords of `answer`.
_LAYOUT = ("max_tiles", "strategy", "dtype", "decoders", "measure", "out")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m launch.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    several = "; may be given several times"
    add = made.add_argument
    add("--workdir", required=True, help="run whose newest checkpoint answers")
    add("--question", required=True, action="append", help="asked one after the other" + several)
    add("--image", action="append", default=[], help="a picture" + several)
    add("--region", action="append", default=[], help="a box x1,y1,x2,y2 in [0, 1]" + several)
    add("--max_tiles", type=int, default=1, help="tiles a picture is cut into at most, as in training")
    add("--max_new", type=int, default=64, help="columns of an answer at most")
    add("--temperature", type=float, default=0.0, help="0 takes the best token each time")
    add("--top_p", type=float, default=1.0, help="samples from the fewest tokens this probable")
    add("--seed", type=int, default=0, help="of the sampling, and of the noise of pictures")
    add("--stop", action="append", default=[], help="a string that ends the answer" + several)
    add("--strategy", default="single", help="how the model is laid over the devices")
    add("--dtype", choices=("float32", "bfloat16"), help="of all parameters; as they are stored by default")
    chosen = "load only these, separated by commas; all that paint by default"
    add("--decoders", type=lambda text: tuple(filter(None, text.split(","))), default=PAINTERS, help=chosen)
    add("--measure", action="store_true", help="print time and memory of each step")
    add("--out", type=pathlib.Path, default=pathlib.Path("pictures"), help="folder for pictures")
    add("--sampler", choices=SAMPLERS, help="of pictures; the run's own by default")
    add("--steps", type=int, help="of the sampler")
    add("--guidance", type=float, help="how far the words push a picture; 1 is not at all")
    add("--image_guidance", type=float, help="how far the picture to edit pushes")
    return made


def main() -> int:
    """Prints one answer a question; 2 if the question cannot be asked."""
    args = parser().parse_args()
    logging.set_verbosity(logging.WARNING)
    layout: dict[str, Any] = {name: getattr(args, name) for name in _LAYOUT}
    sampling = {name: getattr(args, name) for name in ("sampler", "steps", "guidance", "image_guidance")}
    layout["sampling"] = {name: value for name, value in sampling.items() if value is not None}
    try:
        settings = AnswerConfig(
            max_new=args.max_new,
            temperature=args.temperature,
            top_p=args.top_p,
            stop=tuple(args.stop),
            seed=args.seed,
        )
        answer(args.workdir, args.question, args.image, args.region, settings, **layout)
    except (DataError, ValueError, FileNotFoundError) as error:
        print(f"launch.generate: {error}", file=sys.stderr)
        return 2
    return 0


def answer(
    workdir: PathLike,
    questions: Sequence[str],
    pictures: Sequence[str],
    regions: Sequence[str],
    settings: AnswerConfig,
    *,
    max_tiles: int = 1,
    strategy: str = "single",
    dtype: str | None = None,
    decoders: Collection[str] = PAINTERS,
    measure: bool = False,
    out: pathlib.Path = pathlib.Path("pictures"),
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Asks the questions one after the other and prints the answers; each sees the ones before it.

    Args:
      workdir: of the run whose newest checkpoint answers.
      questions, pictures, regions: see the module.
      settings: of the answers; rows, tiles and regions follow from the question.
      max_tiles: tiles a picture is cut into at most.
      strategy: how the model is laid over the devices.
      dtype: of all parameters; None keeps what is stored.
      decoders: those that are loaded if the model has them.
      measure: print time and memory of each step.
      out: folder for pictures that the answers paint.
      sampling: fields of `SamplingConfig` that differ from the run's.

    Raises:
      DataError: a broken picture, or marks that do not fit the pictures and regions.
      ValueError: a region that is no box, an impossible number of steps, or a region or an edit without a
        picture.
      FileNotFoundError: no checkpoint.
    """
    if not all(question.strip() for question in questions):
        raise ValueError("--question is empty: say what to answer")
    run = saved_run(workdir, strategy, decoders)
    size = run.model.vision.image_size
    tiling = Tiling("anyres", size, max_tiles)
    whole = [load_image(path) for path in pictures]
    images = [tiling(picture) for picture in whole]
    masks = boxes(regions, size)
    if len(masks) and not images:
        raise ValueError("--region needs an --image that it lies on")
    tiles = sum(len(image) for image in images)
    with timed("load", measure):
        model = saved_model(workdir, run, dtype)
    settings = dataclasses.replace(settings, rows=1, tiles=tiles, regions=len(masks), states=True)
    answerer = Answerer(run, settings)
    brush = Brush(run, sampling or {}, settings.seed)
    turns: list[tuple[str, str]] = []
    for number, question in enumerate(questions):
        asked = sum(text.count("<region>") for _, text in turns)
        turns = [*turns, ("human", place_marks(question, len(images), asked, first=number == 0))]
        asked += question.count("<region>")
        example = Example(
            source="command line",
            file="the command line",
            record=f"question {number + 1}",
            turns=turns,
            images=images,
            # Regions that only a later question speaks of are not there yet.
            regions=masks[:asked],
            region_images=np.full(len(masks[:asked]), len(images) - 1, np.int32),
        )
        with timed("answer", measure):
            (found,) = answerer(model, [example])
        print(found.text)
        for name, picture in brush(model, found, whole[-1] if whole else None):
            make_folder(out, "--out")
            Image.fromarray(picture).save(out / f"{number + 1}_{name}.png")
            print(out / f"{number + 1}_{name}.png")
        note_links(found.links, run)
        turns = [*turns, ("gpt", found.text)]


def place_marks(question: str, images: int, regions: int = 0, *, first: bool) -> str:
    """The question as in training: regions numbered, pictures in front unless it places them itself.

    Args:
      question: as it was asked.
      images: all pictures of the conversation.
      regions: those that the turns before it spoke of; numbers go on through a conversation.
      first: whether there are no such turns.
    """
    numbers = itertools.count(regions + 1)
    question = re.sub("<region>", lambda _: region_text(next(numbers)), question)
    if first and "<image>" not in question:
        question = "<image>\n" * images + question
    return question


def boxes(texts: Sequence[str], size: int) -> np.ndarray:
    """Masks [n, size, size] of boxes given as text.

    Raises:
      ValueError: a box that is not four numbers in [0, 1] with x1 < x2 and y1 < y2.
    """
    masks = [no_regions(size)]
    for text in texts:
        try:
            x1, y1, x2, y2 = (float(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"--region={text}: give four numbers x1,y1,x2,y2") from None
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            raise ValueError(f"--region={text}: need 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1")
        masks.append(box_in_tile((x1, y1, x2, y2), 1, 1, size)[None])
    return np.concatenate(masks)


def note_links(links: tuple[str, ...], run: Run) -> None:
    """Says which decoders the answer called that did not do anything here."""
    decoders = {link.token: link.decoder for link in LINKS}
    for link in links:
        decoder = decoders[link]
        if decoder not in PAINTERS:
            print(f"[{link.upper()}] calls {decoder}; see launch.predict", file=sys.stderr)
        elif decoder not in run.model.decoders:
            print(f"[{link.upper()}] calls {decoder}, which this model has not loaded", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
