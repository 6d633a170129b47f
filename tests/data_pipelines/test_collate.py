# SPDX-License-Identifier: Apache-2.0
"""Rows and batches: every column points at what it stands for, capacities hold, nothing is lost silently."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import collate as collate_module
from data_pipelines.collate import CapacityError, CollateSpec, TaskShape, blank_row, collate, make_row
from data_pipelines.conversation import link, region_text
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from vllm2_jax.batch import IGNORE, IMAGE, LINK, REGION, TEXT
from vllm2_jax.tokens import QueryCounts

SIZE, PER_TILE = 8, 4
COUNTS = QueryCounts(perception=2, generation=3)
SPEC = CollateSpec(length=100, tile_size=SIZE, tokens_per_tile=PER_TILE, counts=COUNTS)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY_TOKENIZER)


def pad_boxes(targets, shape):
    """A decoder's collate function, as one that comes later would write it."""
    boxes = np.zeros((shape.capacities["boxes"], 4), np.float32)
    given = np.zeros((0, 4)) if targets is None else targets["boxes"]
    if len(given) > len(boxes) and shape.strict:
        raise CapacityError(f"{len(given)} boxes where there is room for {len(boxes)}", field="boxes")
    boxes[: len(given)] = given[: len(boxes)]
    return {"boxes": boxes}, max(0, len(given) - len(boxes))


@pytest.fixture
def decoder(monkeypatch):
    monkeypatch.setitem(collate_module.DECODER_COLLATE, "grounding_dino", pad_boxes)
    return "grounding_dino"


def example(question="What is it?", answer="A star.", tiles=(1,), regions=(), **fields):
    """Tile k of picture j is filled with the number 10 j + k + 1, region k with a mask of k + 1 pixels."""
    images = [
        np.stack([np.full((SIZE, SIZE, 3), 10 * j + k + 1, np.uint8) for k in range(n)])
        for j, n in enumerate(tiles)
    ]
    masks = np.zeros((len(regions), SIZE, SIZE), np.uint8)
    for k in range(len(regions)):
        masks[k, 0, : k + 1] = 1
    marks = "<image>\n" * len(tiles) + "".join(region_text(k + 1) for k in range(len(regions)))
    return Example(
        source="test",
        file="test.json",
        record="7",
        turns=[("human", marks + question), ("gpt", answer)],
        images=images,
        regions=masks,
        region_images=np.array(regions, np.int32),
        **fields,
    )


def row(sample, tokenizer, spec=SPEC, **shape):
    return make_row(sample, tokenizer, spec, TaskShape(**{"rows": 2, "tiles": 5, "regions": 3, **shape}))


def test_a_row(tokenizer):
    made = row(example(tiles=(2, 3), regions=(1, 0)), tokenizer)
    n = int(made.segments.sum())
    assert np.array_equal(made.positions[:n], np.arange(n)) and not made.segments[n:].any()
    assert np.array_equal(made.index[made.source == IMAGE], np.arange(5 * PER_TILE))
    assert np.array_equal(made.index[made.source == REGION], [0, 1])
    assert made.tokens[0] == tokenizer.ids.bos and np.all(made.tokens[n:] == tokenizer.ids.padding)
    # The last tile of each picture shows all of it: tile 4 for the second picture, tile 1 for the first.
    assert made.mask_tile.tolist() == [4, 1, 0]
    assert [tile[0, 0, 0] for tile in made.tiles] == [1, 2, 11, 12, 13]
    assert made.masks.sum((1, 2)).tolist() == [1, 2, 0]
    answer = tokenizer.decode(made.labels[made.labels != IGNORE])
    assert answer == "A star." and np.all(made.labels[made.source != TEXT] == IGNORE)


def test_links_take_their_places(tokenizer, decoder):
    counts = {"det": 3, "grd": 1}
    answer = f"{link('', 'grd', COUNTS)} and {link('cat', 'det', COUNTS)}, {link('dog', 'det', COUNTS)}."
    sample = example(answer=answer, targets={decoder: {"boxes": np.ones((2, 4))}})
    made = row(sample, tokenizer, links=counts, decoder=decoder, capacities={"boxes": 3})
    assert made.link_valid.tolist() == [True, True, False, True]
    starts = made.link_position[made.link_valid]
    routing = made.tokens[starts[:, 0] - 1]
    assert routing.tolist() == [tokenizer.ids.det, tokenizer.ids.det, tokenizer.ids.grd]
    assert np.all(made.source[starts] == LINK) and np.all(starts[:, 1] == starts[:, 0] + 1)
    assert np.array_equal(made.tokens[starts], [[tokenizer.ids.emb, tokenizer.ids.emb2]] * 3)
    assert np.all(made.index[starts] == COUNTS.offset("det") + np.arange(2))
    assert np.all(made.labels[starts] == IGNORE)
    assert np.all(made.labels[starts[:, 0] - 1] == routing)  # the model learns to call the decoder
    assert made.targets[decoder]["boxes"].sum(1).tolist() == [4, 4, 0]


def test_query_rows_of_other_banks(tokenizer, monkeypatch):
    monkeypatch.setitem(collate_module.DECODER_COLLATE, "stable_diffusion", lambda t, s: ({}, 0))
    sample = example(answer=f"Done: {link('', 'gen', COUNTS)}", tiles=(), targets={"stable_diffusion": {}})
    made = row(sample, tokenizer, links={"gen": 1}, decoder="stable_diffusion")
    assert made.link_position.shape == (1, 3)
    assert np.array_equal(made.index[made.link_position[0]], COUNTS.offset("gen") + np.arange(3))
    assert np.all(made.tokens[made.link_position[0]] == tokenizer.ids.emb)


def test_a_batch_counts_inside_its_group(tokenizer):
    shape = TaskShape(rows=2, tiles=3, regions=2)
    samples = [example(tiles=(1,), regions=(0,)), example(tiles=(1, 2), regions=(0, 1))] * 2
    rows = [make_row(sample, tokenizer, SPEC, shape) for sample in samples]
    batch, counters = collate(rows, SPEC, shape)
    inputs = batch.inputs
    assert inputs.tiles.shape == (2, 6, SIZE, SIZE, 3) and inputs.masks.shape == (2, 4, SIZE, SIZE)
    assert inputs.tokens.shape == batch.labels.shape == (2, 2, 100)
    assert batch.link_position.shape == (2, 2, 0, 1) and batch.targets == {}
    assert counters == {"skipped": 0, "dropped_links": 0, "dropped_targets": 0}
    for group in range(2):
        # Row 1 finds its pictures behind the three tiles that row 0 has room for.
        tiles = inputs.tiles[group, :, 0, 0, 0]
        at = inputs.index[group, 1][inputs.source[group, 1] == IMAGE]
        assert np.array_equal(tiles[at // PER_TILE], np.repeat([1, 11, 12], PER_TILE))
        regions = inputs.index[group, 1][inputs.source[group, 1] == REGION]
        assert inputs.masks[group, regions].sum((1, 2)).tolist() == [1, 2]
        assert tiles[inputs.mask_tile[group, regions]].tolist() == [1, 12]
        assert tiles[inputs.mask_tile[group, 0]] == 1
    assert inputs.tokens.dtype == inputs.index.dtype == inputs.mask_tile.dtype == np.int32
    assert inputs.tiles.dtype == inputs.masks.dtype == np.uint8 and batch.link_valid.dtype == bool


def test_a_row_without_room_for_anything(tokenizer):
    shape = TaskShape(rows=1)
    batch, _ = collate([make_row(example(tiles=()), tokenizer, SPEC, shape)], SPEC, shape)
    assert batch.inputs.tiles.shape == (1, 0, SIZE, SIZE, 3)
    assert batch.inputs.masks.shape == (1, 0, SIZE, SIZE)


def test_blank_rows_train_nothing(tokenizer):
    shape = TaskShape(rows=1, tiles=1, regions=1)
    blank = blank_row(tokenizer, SPEC, shape)
    assert not blank.segments.any() and np.all(blank.labels == IGNORE) and not blank.source.any()


@pytest.mark.parametrize(
    ("sample", "shape", "message"),
    [
        (example(tiles=(2,)), {"tiles": 1}, "2 tiles where there is room for 1"),
        (example(regions=(0, 0)), {"regions": 1}, "2 regions where there is room for 1"),
        (example(answer="star " * 200), {}, "columns where there is room for 100"),
    ],
)
def test_what_does_not_fit_is_named(tokenizer, sample, shape, message):
    with pytest.raises(CapacityError, match=f"test.json, record 7.*{message}.*Remedy"):
        row(sample, tokenizer, **shape)


def test_truncation_keeps_to_the_length(tokenizer):
    spec = dataclasses.replace(SPEC, truncate=True)
    made = row(example(answer="star " * 200), tokenizer, spec)
    assert made.segments.all() and (made.labels != IGNORE).any()
    with pytest.raises(CapacityError, match=r"test.json, record 7.*a cut would lose a picture.*Remedy"):
        row(example(question="star " * 200), tokenizer, spec)


def test_too_many_links_and_targets(tokenizer, decoder):
    answer = ", ".join(link(name, "det", COUNTS) for name in ("cat", "dog", "cow"))
    sample = example(answer=answer, targets={decoder: {"boxes": np.ones((3, 4))}})
    options = {"decoder": decoder, "capacities": {"boxes": 2}}
    with pytest.raises(CapacityError, match=r"record 7: 3 \[DET\] links where there is room for 2"):
        row(sample, tokenizer, links={"det": 2}, **options)
    with pytest.raises(CapacityError, match="record 7, field 'boxes': 3 boxes"):
        row(sample, tokenizer, links={"det": 3}, **options)
    made = row(sample, tokenizer, links={"det": 2}, strict=False, **options)
    assert made.counters == {"skipped": 0, "dropped_links": 1, "dropped_targets": 1}
    assert made.link_valid.all()


def test_no_cut_loses_a_link(tokenizer, decoder):
    answer = f"{link('cat', 'det', COUNTS)}, {link('dog', 'det', COUNTS)} and that is all there is to see"
    sample = example(answer=answer, targets={decoder: {"boxes": np.ones((1, 4))}})
    options = {"decoder": decoder, "links": {"det": 2}, "capacities": {"boxes": 1}}
    starts = row(sample, tokenizer, **options).link_position[:, 0]
    for length, kept in ((int(starts[1]) + 4, 2), (int(starts[1]) + 1, 1)):
        cut = dataclasses.replace(SPEC, truncate=True, length=length)
        if kept == 1:
            with pytest.raises(CapacityError, match=rf"record 7.*1 of 2 links lie beyond the {length} col"):
                row(sample, tokenizer, cut, **options)
        made = row(sample, tokenizer, cut, strict=kept == 2, **options)
        assert made.link_valid.sum() == kept and made.counters["dropped_links"] == 2 - kept


def test_other_links_and_missing_targets(tokenizer, decoder):
    answer = link("cat", "seg", COUNTS)
    options = {"decoder": decoder, "links": {"det": 1}, "capacities": {"boxes": 1}}
    with pytest.raises(DataError, match=r"links \['seg'\], the task takes \['det'\]"):
        row(example(answer=answer), tokenizer, **options)
    with pytest.raises(DataError, match=r"field 'targets'.*no targets for the decoder 'grounding_dino'"):
        row(example(answer=link("cat", "det", COUNTS)), tokenizer, **options)


def test_tiles_of_another_size(tokenizer):
    with pytest.raises(DataError, match=r"record 7.*tile size"):
        row(example(), tokenizer, dataclasses.replace(SPEC, tile_size=9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"links": {"box": 1}, "decoder": "x"}, r"unknown links \['box'\]"),
        ({"links": {"det": 1}}, "both a decoder and links or neither"),
        ({"links": {"det": 1}, "decoder": "oracle"}, "'oracle' has no function in"),
        ({"pack": True, "tiles": 1}, "only language-only tasks are packed"),
    ],
)
def test_impossible_shapes(options, message):
    with pytest.raises(ValueError, match=message):
        TaskShape(rows=1, **options)


def test_links_of_one_task_have_equal_queries(decoder):
    shape = TaskShape(rows=1, decoder=decoder, links={"det": 1, "gen": 1}, capacities={"boxes": 1})
    with pytest.raises(ValueError, match="equal query counts"):
        shape.queries(COUNTS)
