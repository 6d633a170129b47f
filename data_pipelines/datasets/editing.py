# SPDX-License-Identifier: Apache-2.0
"""Pictures to change as an instruction says, in any kind of file.

    {"input": "a.jpg", "instruction": "...", "output": "b.jpg"}   JSON or JSON lines; the default
    original_image, edit_prompt, edited_image                     InstructPix2Pix's Parquet tables
    source_image, instruction, target_image                       SEED-X; give the three fields

The language model sees the picture before the edit like any other; the answer has an `[EDIT]` link.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from data_pipelines.conversation import IMAGE_MARK, link
from data_pipelines.draws import generator
from data_pipelines.encoded import Encoded
from data_pipelines.example import Example, no_regions
from data_pipelines.images import Mode, Tiling
from data_pipelines.stores import open_records, picture_at, text_at
from data_pipelines.templates import load_templates, pick
from vllm2_jax.tokens import QueryCounts


@dataclasses.dataclass(frozen=True)
class EditingSource:
    """Random access to edits; `fields` are those of the input, the instruction and the output."""

    file: str
    records: Sequence[dict]
    image_root: pathlib.Path
    tiling: Tiling
    requests: tuple[str, ...]
    answers: tuple[str, ...]
    fields: tuple[str, str, str]
    counts: QueryCounts
    seed: int
    test: bool
    encoded: Encoded | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Edit `index`. Half of the instructions get a wording around them, as in the official data.

        Raises:
          DataError: no instruction, a missing picture, or a broken one.
        """
        record = self.records[index]
        name = str(record.get("id", index))
        rng = None if self.test else generator(self.seed, index)
        place = {"file": self.file, "index": name}
        before, words, after = self.fields
        instruction = text_at(record, words, **place).rstrip(".")
        if rng is not None and rng.random() < 0.5:
            request = pick(self.requests, rng).replace("{caption}", instruction.lower())
        else:
            request = f"{instruction[:1].upper()}{instruction[1:]}."
        image = picture_at(record, before, self.image_root, **place)
        if self.encoded is None:
            targets = {"input": image, "image": picture_at(record, after, self.image_root, **place)}
        else:
            targets = self.encoded[index]
        return Example(
            source="editing",
            file=self.file,
            record=name,
            turns=[
                ("human", f"{IMAGE_MARK}\n{request}"),
                ("gpt", pick(self.answers, rng).replace("{link}", link("", "edit", self.counts))),
            ],
            images=[self.tiling(image)],
            regions=no_regions(self.tiling.size),
            targets={"instruct_pix2pix": {**targets, "caption": instruction}},
            meta={"instruction": instruction},
        )


def load(
    *,
    annotations: str,
    tile_size: int,
    image_root: str = "",
    image_mode: Mode = "anyres",
    max_tiles: int = 4,
    input_field: str = "input",
    instruction_field: str = "instruction",
    output_field: str = "output",
    templates: str | None = None,
    counts: QueryCounts = QueryCounts(),  # noqa: B008 (frozen)
    seed: int = 0,
    test: bool = False,
    encoded: str = "",
) -> EditingSource:
    """Opens edits.

    Args:
      annotations: a `.json`, `.jsonl`, `.tar` or `.parquet` file, or a pattern with `*`.
      tile_size, image_mode, max_tiles: how the language model sees the picture, see `images.Tiling`.
      image_root: folder that picture paths start from; that of `annotations` if empty.
      input_field, instruction_field, output_field: paths into a record, see `stores.dig`.
      templates: JSON file with wordings of one's own, keys "edit" and "edited".
      counts: queries of a link; must be those of the model.
      seed: of the wording, together with the index.
      test: always the bare instruction and the first answer.
      encoded: folder that `launch.encode` wrote for these records; then only the language model's picture is
        read.

    Raises:
      DataError: a missing or malformed file.
    """
    records = open_records(annotations)
    return EditingSource(
        file=annotations,
        records=records,
        image_root=pathlib.Path(image_root) if image_root else pathlib.Path(annotations).parent,
        tiling=Tiling(image_mode, tile_size, max_tiles),
        requests=load_templates("edit", templates),
        answers=load_templates("edited", templates),
        fields=(input_field, instruction_field, output_field),
        counts=counts,
        seed=seed,
        test=test,
        encoded=Encoded(encoded, len(records)) if encoded else None,
    )
