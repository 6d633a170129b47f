# SPDX-License-Identifier: Apache-2.0
"""Readers of generation and editing, from file to the arrays of a row."""

import json

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from data_pipelines import DATASETS
from data_pipelines.caption_tokenizer import load_caption_tokenizer
from data_pipelines.collate import CollateSpec, TaskShape, make_row
from data_pipelines.collate_diffusion import central_square
from data_pipelines.conversation import link
from data_pipelines.errors import DataError
from data_pipelines.images import Tiling
from data_pipelines.mixture import make_dataset
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from tests.data_pipelines.test_stores import picture, write_table, write_tar
from vllm2_jax.tokens import QueryCounts

COUNTS = QueryCounts(generation=3)
CAPACITIES = {"size": 16, "caption": 12}
SPEC = CollateSpec(length=240, tile_size=8, tokens_per_tile=1, counts=COUNTS)
PAINT = TaskShape(rows=2, decoder="stable_diffusion", links={"gen": 1}, capacities=CAPACITIES)
EDIT = TaskShape(rows=2, tiles=2, decoder="instruct_pix2pix", links={"edit": 1}, capacities=CAPACITIES)


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(picture(seed))
    return tmp_path


def write(folder, records) -> str:
    path = folder / "records.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def test_a_caption_becomes_a_request(folder):
    file = write(folder, [{"image": "a.png", "caption": 'A "Dog":  (on) a #hill!  '}])
    example = DATASETS["text_to_image"](annotations=file, counts=COUNTS, test=True)[0]
    assert example.turns == [
        ("human", "Paint this: a dog on a hill."),
        ("gpt", f"Done: {link('', 'gen', COUNTS)}."),
    ]
    assert example.images == []
    assert example.targets["stable_diffusion"]["caption"] == "a dog on a hill"
    assert example.targets["stable_diffusion"]["image"].shape == (6, 8, 3)


@pytest.mark.parametrize(
    "record, fields",
    [
        ({"img_path": "a.png", "prompt": "x"}, {"image_field": "img_path", "caption_field": "prompt"}),
        (
            {"image": "a.png", "conversations": [{"value": "?"}, {"value": "x"}]},
            {"caption_field": "conversations.1.value"},
        ),
    ],
)
def test_other_names_of_fields(folder, record, fields):
    file = write(folder, [record])
    example = DATASETS["text_to_image"](annotations=file, counts=COUNTS, **fields)[0]
    assert example.meta["caption"] == "x"


def test_shards_and_tables(tmp_path):
    tar = write_tar(tmp_path / "a.tar", {"7.png": picture(0), "7.txt": b"a cat"})
    example = DATASETS["text_to_image"](annotations=tar, counts=COUNTS)[0]
    assert (example.record, example.meta["caption"]) == ("7", "a cat")
    table = write_table(tmp_path / "a.parquet", 3)
    example = DATASETS["text_to_image"](annotations=table, counts=COUNTS)[2]
    assert (example.record, example.meta["caption"]) == ("2", "caption 2")


def test_an_instruction_with_and_without_a_wording(folder):
    record = {"input": "a.png", "instruction": "make it Red.", "output": "b.png"}
    file = write(folder, [record] * 20)
    options = {"annotations": file, "tile_size": 8, "max_tiles": 1, "counts": COUNTS}
    plain = DATASETS["editing"](**options, test=True)[0]
    assert plain.turns[0] == ("human", "<image>\nMake it Red.")
    assert [tiles.shape for tiles in plain.images] == [(1, 8, 8, 3)]
    assert plain.targets["instruct_pix2pix"]["caption"] == "make it Red"
    source = DATASETS["editing"](**options)
    asked = [source[i].turns[0][1] for i in range(20)]
    assert 4 < sum(text == "<image>\nMake it Red." for text in asked) < 16
    assert any("make it red" in text for text in asked)
    assert asked == [source[i].turns[0][1] for i in range(20)]


def test_the_model_sees_the_picture_before_the_edit_and_makes_the_one_after(folder):
    before, after = (np.asarray(Image.open(folder / name).convert("RGB")) for name in ("a.png", "b.png"))
    file = write(folder, [{"input": "a.png", "instruction": "x", "output": "b.png"}])
    example = DATASETS["editing"](annotations=file, tile_size=8, max_tiles=1, counts=COUNTS)[0]
    targets = example.targets["instruct_pix2pix"]
    np.testing.assert_array_equal(targets["input"], before)
    np.testing.assert_array_equal(targets["image"], after)
    np.testing.assert_array_equal(example.images[0], Tiling("anyres", 8, 1)(before))
    arrays = make_row(example, load_tokenizer(TINY_TOKENIZER), SPEC, EDIT).targets["instruct_pix2pix"]
    np.testing.assert_array_equal(arrays["input"], central_square(before, 16))
    np.testing.assert_array_equal(arrays["image"], central_square(after, 16))


def test_edits_of_a_table(tmp_path):
    """The columns of InstructPix2Pix, pictures as the datasets library writes them."""
    rows = [
        {
            "original_image": {"bytes": picture(0, mode, kind), "path": None},
            "edit_prompt": "make it night",
            "edited_image": {"bytes": picture(1, mode, kind), "path": None},
        }
        for mode, kind in (("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "edits.parquet", row_group_size=3)
    fields = {
        "input_field": "original_image",
        "instruction_field": "edit_prompt",
        "output_field": "edited_image",
    }
    file = str(tmp_path / "*.parquet")
    source = DATASETS["editing"](annotations=file, tile_size=8, max_tiles=1, counts=COUNTS, **fields)
    assert len(source) == 4
    for number in range(4):
        row = make_row(source[number], load_tokenizer(TINY_TOKENIZER), SPEC, EDIT)
        found = row.targets["instruct_pix2pix"]
        assert found["input"].shape == found["image"].shape == (16, 16, 3)
        assert np.any(found["input"] != found["image"])


def test_captions_of_any_length(folder):
    """Too many words for the text encoder lose their end; the reader refuses none at all."""
    file = write(folder, [{"image": "a.png", "caption": "star " * 40}, {"image": "a.png", "caption": "  "}])
    source = DATASETS["text_to_image"](annotations=file, counts=COUNTS, test=True)
    row = make_row(source[0], load_tokenizer(TINY_TOKENIZER), SPEC, PAINT)
    ids = row.targets["stable_diffusion"]["caption"]
    assert ids.shape == (12,) and ids[-1] == load_caption_tokenizer("").end and (ids[1:-1] != ids[-1]).all()
    with pytest.raises(DataError, match="record 1, field 'caption': the text is empty"):
        source[1]


def test_rows_have_square_pictures_and_captions(folder):
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    file = write(folder, [{"image": "a.png", "caption": "a small dog", "input": "b.png", "output": "a.png"}])
    example = DATASETS["text_to_image"](annotations=file, counts=COUNTS)[0]
    row = make_row(example, tokenizer, SPEC, PAINT)
    found = row.targets["stable_diffusion"]
    assert {name: x.shape for name, x in found.items()} == {
        "image": (16, 16, 3),
        "caption": (12,),
        "has_caption": (),
    }
    assert (found["image"][:1] == 255).all()  # white above a picture that is wider than high
    assert found["has_caption"]
    assert row.link_valid.tolist() == [True]
    fields = {"instruction_field": "caption", "tile_size": 8, "max_tiles": 1}
    example = DATASETS["editing"](annotations=file, counts=COUNTS, **fields)[0]
    found = make_row(example, tokenizer, SPEC, EDIT).targets["instruct_pix2pix"]
    assert set(found) == {"image", "input", "caption", "has_caption"}
    assert not (found["input"][:1] == 255).all()


def test_bad_records_are_skipped_and_counted(folder):
    good = {"image": "a.png", "caption": "fine"}
    bad = [{"image": "a.png", "caption": ""}, {"image": "a.png", "caption": "..."}, {"image": "gone.png"}]
    file = write(folder, [good] * 12 + bad + [good | {"caption": "word " * 400}])
    batches = make_dataset(
        {
            "t2i": {
                "rows": 4,
                "decoder": "stable_diffusion",
                "links": {"gen": 1},
                "capacities": CAPACITIES,
                "datasets": {"text_to_image": {"annotations": file}},
            }
        },
        tokenizer=load_tokenizer(TINY_TOKENIZER),
        spec=SPEC,
        groups=1,
        seed=0,
        threads=0,
        prefetch=0,
    )
    # Three batches are the twelve good records; a request that does not fit is skipped like broken ones.
    found = [element for element, _ in zip(iter(batches), range(4), strict=False)]
    assert sum(element["counters"]["t2i/skipped"] for element in found) >= 4
    images = found[0]["batch"]["t2i"].targets["stable_diffusion"]["image"]
    assert images.shape == (1, 4, 16, 16, 3)


def test_messages_name_file_record_and_field(folder):
    file = write(folder, [{"id": "q", "image": "a.png", "caption": "!!"}])
    with pytest.raises(DataError, match=rf"{file}, record q, field 'caption': nothing is left"):
        DATASETS["text_to_image"](annotations=file, counts=COUNTS)[0]


def test_pictures_of_an_edit_have_one_shape(folder):
    Image.fromarray(np.zeros((9, 5, 3), np.uint8)).save(folder / "tall.png")
    file = write(folder, [{"input": "a.png", "instruction": "x", "output": "tall.png"}])
    example = DATASETS["editing"](annotations=file, tile_size=8, max_tiles=1, counts=COUNTS)[0]
    with pytest.raises(DataError, match="record 0, field 'input': the pictures before and after"):
        make_row(example, load_tokenizer(TINY_TOKENIZER), SPEC, EDIT)
