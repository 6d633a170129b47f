# SPDX-License-Identifier: Apache-2.0
"""Pictures to paint from their captions: LAION, JourneyDB, CC3M and the like, in any kind of file.

    {"image": "00/0001.jpg", "caption": "..."}               JSON or JSON lines (LAION); the default
    {"img_path": ..., "prompt": ...}                         JourneyDB; give the two fields
    {"image": ..., "conversations": [..., {"value": ...}]}   CC3M; caption_field=conversations.1.value
    00000.tar with 0001.jpg, 0001.txt (or 0001.json)         a WebDataset shard
    a Parquet table with encoded pictures                    columns are named as fields

The conversation has no picture: a request with the caption, and an answer with a `[GEN]` link.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from data_pipelines.conversation import link
from data_pipelines.draws import generator
from data_pipelines.encoded import Encoded
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.stores import open_records, picture_at, text_at
from data_pipelines.templates import load_templates, pick
from vllm2_jax.tokens import QueryCounts

_SIGNS = re.compile(r"[.!\"()*#:;~]")  # what the official data replaces by blanks


@dataclasses.dataclass(frozen=True)
class TextToImageSource:
    """Random access to captioned pictures."""

    file: str
    records: Sequence[dict]
    image_root: pathlib.Path
    requests: tuple[str, ...]
    answers: tuple[str, ...]
    image_field: str
    caption_field: str
    counts: QueryCounts
    seed: int
    test: bool
    encoded: Encoded | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Picture `index`.

        Raises:
          DataError: no caption (or one of signs alone), no picture, or a broken one.
        """
        record = self.records[index]
        name = str(record.get("id", index))
        rng = None if self.test else generator(self.seed, index)
        caption = clean_caption(text_at(record, self.caption_field, file=self.file, index=name))
        if not caption:
            raise DataError(
                "nothing is left of the caption once its signs are gone",
                file=self.file,
                record=name,
                field=self.caption_field,
                remedy="drop the record",
            )
        if self.encoded is None:
            image = picture_at(record, self.image_field, self.image_root, file=self.file, index=name)
            targets = {"image": image, "caption": caption}
        else:
            targets = {**self.encoded[index], "caption": caption}
        request = pick(self.requests, rng).replace("{caption}", caption)
        answer = pick(self.answers, rng).replace("{link}", link("", "gen", self.counts))
        return Example(
            source="text_to_image",
            file=self.file,
            record=name,
            turns=[("human", request), ("gpt", answer)],
            targets={"stable_diffusion": targets},
            meta={"caption": caption},
        )


def clean_caption(text: str) -> str:
    """Lower case, without the signs `. ! " ( ) * # : ; ~`, and with single blanks."""
    return " ".join(_SIGNS.sub(" ", text.lower()).split())


def load(
    *,
    annotations: str,
    image_root: str = "",
    image_field: str = "image",
    caption_field: str = "caption",
    templates: str | None = None,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    seed: int = 0,
    test: bool = False,
    encoded: str = "",
) -> TextToImageSource:
    """Opens captioned pictures.

    Args:
      annotations: a `.json`, `.jsonl`, `.tar` or `.parquet` file, or a pattern with `*`.
      image_root: folder that picture paths start from; that of `annotations` if empty.
      image_field, caption_field: paths into a record, see `stores.dig`.
      templates: JSON file with wordings of one's own, keys "paint" and "painted".
      counts: queries of a link; must be those of the model.
      seed: of the wording, together with the index.
      test: always the first wording.
      encoded: folder that `launch.encode` wrote for these records; pictures are not read then.

    Raises:
      DataError: a missing or malformed file.
    """
    records = open_records(annotations)
    return TextToImageSource(
        file=annotations,
        records=records,
        image_root=pathlib.Path(image_root) if image_root else pathlib.Path(annotations).parent,
        requests=load_templates("paint", templates),
        answers=load_templates("painted", templates),
        image_field=image_field,
        caption_field=caption_field,
        counts=counts,
        seed=seed,
        test=test,
        encoded=Encoded(encoded, len(records)) if encoded else None,
    )
