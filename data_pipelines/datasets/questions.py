# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that are answered in words, for evaluation: their files, their prompts, their accepted answers.

The prompt is the official one: the hint, the question, the options on lines of their own, and what kind of
answer is wanted. `meta` holds what `launch.heldout` hands to metrics.
"""

import base64
import binascii
import dataclasses
import pathlib
from collections.abc import Sequence

from data_pipelines.conversation import IMAGE_MARK
from data_pipelines.errors import DataError
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Mode, Tiling, load_image
from data_pipelines.question_files import Asked, read_questions


@dataclasses.dataclass(frozen=True)
class QuestionSource:
    """Random access to the questions of one benchmark."""

    file: str
    asked: Sequence[Asked]
    image_root: pathlib.Path
    prefix: str
    request: str | None
    tiling: Tiling

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> Example:
        """Question `index`, and the first of its true answers.

        Raises:
          DataError: a missing or broken picture.
        """
        asked = self.asked[index]
        return Example(
            source="questions",
            file=self.file,
            record=asked.record,
            turns=[("human", f"{IMAGE_MARK}\n{wording(asked, self.request)}"), ("gpt", asked.answers[0])],
            images=[self.tiling(load_image(self._picture(asked)))],
            regions=no_regions(self.tiling.size),
            meta={
                "accepted": asked.answers,
                "kinds": [asked.kind],
                "options": dict(asked.options),
                "group": asked.group,
            },
        )

    def _picture(self, asked: Asked) -> pathlib.Path | bytes:
        if not asked.encoded:
            return self.image_root / asked.image.removeprefix(self.prefix)
        try:
            return base64.b64decode(asked.encoded, validate=True)
        except binascii.Error as error:
            raise DataError(
                f"not base64 ({error})",
                file=self.file,
                record=asked.record,
                field="image",
                remedy="fetch the file again",
            ) from error


def wording(asked: Asked, request: str | None) -> str:
    """The text of a question; an empty `request` still adds its blank, as POPE's prompts have it."""
    lines = [asked.hint] if asked.hint else []
    lines += [asked.question, *(f"{letter}. {text}" for letter, text in asked.options.items())]
    text = "\n".join(lines)
    if request is None:
        return text
    return f"{text}\n{request}" if asked.options else f"{text} {request}"


def load(
    *,
    annotations: str,
    tile_size: int,
    image_root: str = "",
    prefix: str = "",
    answers: str = "",
    request: str | None = None,
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
) -> QuestionSource:
    """Opens a benchmark.

    Args:
      annotations: its file, or the folder of MME; see `data_pipelines.question_files`.
      tile_size: side of a tile in pixels.
      image_root: folder that the pictures' paths start from; the file's own folder if empty.
      prefix: what these paths begin with that `image_root` stands for.
      answers: file or folder of the true answers, where they lie apart.
      request: what follows each question, such as that one word is wanted; None for nothing.
      image_mode: see `data_pipelines.images.Tiling`.
      max_tiles: for "anyres".

    Raises:
      DataError: a missing or malformed file.
    """
    root = pathlib.Path(image_root) if image_root else pathlib.Path(annotations).parent
    tiling = Tiling(image_mode, tile_size, max_tiles)
    return QuestionSource(annotations, read_questions(annotations, answers), root, prefix, request, tiling)
