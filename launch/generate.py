# SPDX-License-Identifier: Apache-2.0
"""Answers a question about pictures with the newest checkpoint of a run.

    python -m launch.generate --workdir runs/demo --image scene.png --question "What colour is the circle?"
    python -m launch.generate --workdir runs/demo --image scene.png --region 0.1,0.1,0.5,0.5 \\
        --question "What is <region>?"

Every --image stands in front of the question unless the question places it with <image>. Every --region
is a box x1,y1,x2,y2 in parts of the last picture's width and height, written <region> in the question.
"""

import itertools
import pathlib
import re
import sys

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging

from data_pipelines.conversation import region_text
from data_pipelines.errors import DataError
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Tiling, load_image
from data_pipelines.masks import box_in_tile
from launch.answer import AnswerConfig, Answerer
from launch.build import Run, build_run
from vllm2_jax.tokens import LINKS
from vllm2_jax.train.checkpoint import Checkpoints, load_weights

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; its newest checkpoint answers.")
_IMAGE = flags.DEFINE_multi_string("image", [], "A picture; may be given several times.")
_REGION = flags.DEFINE_multi_string("region", [], "A box x1,y1,x2,y2 in [0, 1]; may be given several times.")
_QUESTION = flags.DEFINE_multi_string(
    "question", None, "The question; several are asked one after the other."
)
_MAX_TILES = flags.DEFINE_integer("max_tiles", 1, "Tiles a picture is cut into at most; as in training.")
_MAX_NEW = flags.DEFINE_integer("max_new", 64, "Columns of an answer at most.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the best token each time.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Samples from the fewest tokens with this probability.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")
_STOP = flags.DEFINE_multi_string("stop", [], "A string that ends the answer; may be given several times.")
_STRATEGY = flags.DEFINE_string("strategy", "single", "How the model is laid over the devices.")


def main(argv: list[str]) -> None:
    """Reads the flags and prints one answer a question."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; quote the question")
    logging.set_verbosity(logging.WARNING)
    try:
        answer(pathlib.Path(_WORKDIR.value))
    except (DataError, ValueError, FileNotFoundError) as error:
        print(f"launch.generate: {error}", file=sys.stderr)
        sys.exit(2)


def answer(workdir: pathlib.Path) -> None:
    """Asks the questions one after the other; each sees the ones before it with their answers."""
    run = saved_run(workdir, _STRATEGY.value)
    model = jax.jit(run.plan.make_model, out_shardings=run.plan.model_shardings)()
    model = load_weights(workdir / "checkpoints", model)
    tiling = Tiling("anyres", run.model.vision.image_size, _MAX_TILES.value)
    images = [tiling(load_image(path)) for path in _IMAGE.value]
    regions = boxes(_REGION.value, run.model.vision.image_size)
    answerer = Answerer(
        run,
        AnswerConfig(
            rows=1,
            tiles=sum(len(image) for image in images),
            regions=len(regions),
            max_new=_MAX_NEW.value,
            temperature=_TEMPERATURE.value,
            top_p=_TOP_P.value,
            stop=tuple(_STOP.value),
            seed=_SEED.value,
        ),
    )
    turns: list[tuple[str, str]] = []
    for question in _QUESTION.value:
        turns.append(("human", place_marks(question, len(images), first=not turns)))
        example = Example(
            source="command line",
            file="--question",
            record=str(len(turns) // 2),
            turns=turns,
            images=images,
            regions=regions,
            region_images=np.full(len(regions), len(images) - 1, np.int32),
        )
        (found,) = answerer(model, [example])
        print(found.text)
        note_links(found.links)
        turns.append(("gpt", found.text))


def saved_run(workdir: pathlib.Path, strategy: str) -> Run:
    """The run whose config lies in its newest checkpoint, laid out anew."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        config = ml_collections.ConfigDict(checkpoints.config())
    config.sharding.strategy, config.sharding.mesh, config.sharding.devices = strategy, "", ""
    config.data.groups = jax.device_count()  # of training; here it only has to fit the mesh
    return build_run(config)


def place_marks(question: str, images: int, *, first: bool) -> str:
    """The question as in training: regions numbered, pictures in front unless it places them itself."""
    numbers = itertools.count(1)
    question = re.sub("<region>", lambda _: region_text(next(numbers)), question)
    if first and "<image>" not in question:
        question = "<image>\n" * images + question
    return question


def boxes(texts: list[str], size: int) -> np.ndarray:
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


def note_links(links: tuple[str, ...]) -> None:
    """Says which decoders the answer called."""
    decoders = {link.token: link.decoder for link in LINKS}
    for link in links:
        print(f"[{link.upper()}] calls {decoders[link]}, which this model does not have", file=sys.stderr)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "question"])
    app.run(main)
