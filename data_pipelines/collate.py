# SPDX-License-Identifier: Apache-2.0
"""From examples to the arrays of a batch, all of static shape.

Two steps: `make_row` turns one example into one row and checks every capacity (it runs in the data workers,
where a bad record can still be replaced by another), `collate` stacks rows and shifts their indices.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import collate_diffusion, collate_perception
from data_pipelines.conversation import LinkAt, Tokens, prompt, tokenize
from data_pipelines.errors import CapacityError, DataError
from data_pipelines.example import Example
from data_pipelines.tokenizer import Tokenizer
from vllm2_jax.batch import IGNORE, IMAGE, LINK, REGION, Inputs, TaskRows
from vllm2_jax.tokens import LINKS, QueryCounts

# Decoder -> a function from (targets of one example, or None for a row of padding; the task's shape) to
# (arrays of static shape, how many entries were left out). With `shape.strict` it raises CapacityError
# instead of leaving something out.
PadTargets = Callable[[Mapping[str, Any] | None, "TaskShape"], tuple[dict[str, np.ndarray], int]]
DECODER_COLLATE: dict[str, PadTargets] = {
    "grounding_dino": collate_perception.grounding_dino,
    "unipose": collate_perception.unipose,
    "stable_diffusion": collate_diffusion.stable_diffusion,
    "instruct_pix2pix": collate_diffusion.instruct_pix2pix,
}

_LINKS = {link.token: link for link in LINKS}


@dataclasses.dataclass(frozen=True)
class CollateSpec:
    """What rows of all tasks share.

    Attributes:
      length: L, columns of a row.
      tile_size: S, side of a tile in pixels.
      tokens_per_tile: columns that one tile fills, `ModelConfig.tokens_per_tile`.
      counts: queries of a link, `ModelConfig.queries`.
      format: a key of `conversation.FORMATS`.
      truncate: cut a row that is too long at its end instead of raising (see `conversation.tokenize`).
      strict: what does not fit raises (training). Otherwise links and targets that are too many are left out
        and counted (evaluation).
      wrap_images: see `conversation.tokenize`.
    """

    length: int
    tile_size: int
    tokens_per_tile: int
    counts: QueryCounts = QueryCounts()  # noqa: RUF009 (frozen)
    format: str = "v1"
    truncate: bool = False
    strict: bool = True
    wrap_images: bool = False


@dataclasses.dataclass(frozen=True)
class TaskShape:
    """Static capacities of one task.

    Attributes:
      rows: r, rows in a group.
      decoder: the decoder that reads the links, or None.
      tiles: tiles a row has room for.
      regions: regions a row has room for.
      links: room for links of each kind (`tokens.LINKS`), for example {"det": 80} or {"det": 1, "pose": 17}.
        Each kind has its own range of the K places, in this order.
      pack: put several language-only examples into one row.
      capacities: what the decoder's own collate function needs, for example {"objects": 100}.
      strict: see `CollateSpec`, from where the mixture copies it.
      length: L, columns of its rows; 0 for those of `CollateSpec`. Tasks of one length are one array in
        the language model.
    """

    rows: int
    decoder: str | None = None
    tiles: int = 0
    regions: int = 0
    links: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pack: bool = False
    capacities: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    strict: bool = True
    length: int = 0

    def __post_init__(self):
        unknown = set(self.links) - set(_LINKS)
        if unknown:
            raise ValueError(f"unknown links {sorted(unknown)}, there are {', '.join(_LINKS)}")
        if bool(self.decoder) != bool(self.links):
            raise ValueError(
                f"a task has both a decoder and links or neither: {self.decoder=}, {self.links=}"
            )
        if self.decoder and self.decoder not in DECODER_COLLATE:
            raise ValueError(
                f"the decoder {self.decoder!r} has no function in data_pipelines.collate.DECODER_COLLATE "
                f"that pads its targets; there are {', '.join(DECODER_COLLATE) or 'none yet'}"
            )
        if self.rows < 1:
            raise ValueError(f"rows={self.rows}: give at least 1, or leave the task out")
        for name, count in {"tiles": self.tiles, "regions": self.regions, **self.links}.items():
            if count < 0:
                raise ValueError(f"{name}={count}: give a number that is at least 0")
        if self.length < 0:
            raise ValueError(f"length={self.length}: give the columns of a row, or 0 for config.data.length")
        if self.pack and (self.tiles or self.regions or self.decoder):
            raise ValueError("only language-only tasks are packed: no tiles, regions or decoder")

    def fitted(self, spec: "CollateSpec") -> "CollateSpec":
        """The same with this task's own length, if it has one."""
        return dataclasses.replace(spec, length=self.length) if self.length else spec

    def queries(self, counts: QueryCounts) -> int:
        """Q, the queries of a link; the links of one task all have the same number."""
        found = {counts.of(_LINKS[token].bank) for token in self.links}
        if len(found) > 1:
            raise ValueError(f"links of one task need equal query counts, not {sorted(found)} ({self.links})")
        return found.pop() if found else 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One row, before it gets its place in a group. `index` and `mask_tile` count inside the row."""

    tokens: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    index: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    tiles: np.ndarray
    masks: np.ndarray
    mask_tile: np.ndarray
    link_position: np.ndarray
    link_valid: np.ndarray
    targets: dict[str, Any]
    counters: dict[str, int]


def make_row(example: Example, tokenizer: Tokenizer, spec: CollateSpec, shape: TaskShape) -> Row:
    """One example as one row.

    Raises:
      CapacityError: more columns, tiles, regions, links or targets than there is room for.
      DataError: the example itself is wrong. Both name the file and the record.
    """
    try:
        return _make_row(example, tokenizer, spec, shape)
    except DataError as error:
        raise error.at(file=example.file, record=example.record) from error


def _make_row(example: Example, tokenizer: Tokenizer, spec: CollateSpec, shape: TaskShape) -> Row:
    spec, tiles_of = shape.fitted(spec), [len(image) for image in example.images]
    _check("tiles", sum(tiles_of), shape.tiles, "allow fewer tiles a picture (max_tiles)")
    _check("regions", len(example.regions), shape.regions, "ask about fewer regions at once")
    row = blank_row(tokenizer, spec, shape)
    for start, tiles in zip(np.cumsum([0, *tiles_of]), example.images, strict=False):
        if tiles.shape[1:] != (spec.tile_size, spec.tile_size, 3):
            raise DataError(
                f"tiles of {tiles.shape[1:]} where the model takes {(spec.tile_size, spec.tile_size, 3)}",
                field="images",
                remedy="give dataset and model the same tile size",
            )
        row.tiles[start : start + len(tiles)] = tiles
    row.masks[: len(example.regions)] = example.regions
    # A region lies on the last tile of its picture, the one that shows all of it.
    row.mask_tile[: len(example.regions)] = (np.cumsum(tiles_of) - 1)[example.region_images]

    columns = columns_of(example, tokenizer, spec, tiles_of)
    n = len(columns.ids)
    row.tokens[:n], row.labels[:n], row.source[:n] = columns.ids, _labels(columns), columns.source
    row.index[:n] = _index(columns, spec.counts)
    row.positions[:n], row.segments[:n] = np.arange(n), 1
    if shape.decoder is None:
        return row
    if columns.lost and shape.strict:  # objects of their classes would have nothing to be found by
        raise CapacityError(
            f"{columns.lost} of {columns.lost + len(columns.links)} links lie beyond the {spec.length} "
            "columns of a row",
            field="conversations",
            remedy="fewer tiles (max_tiles), fewer classes a question, or a longer row (the task's `length`)",
        )
    row.counters["dropped_links"] = columns.lost + _place_links(columns.links, row, shape)
    targets = example.targets.get(shape.decoder)
    if targets is None:
        raise DataError(
            f"the example has no targets for the decoder {shape.decoder!r}",
            field="targets",
            remedy="take a dataset of this task or remove the decoder from the mixture",
        )
    arrays, dropped = DECODER_COLLATE[shape.decoder](targets, shape)
    row.targets[shape.decoder] = arrays
    row.counters["dropped_targets"] = dropped
    return row


def columns_of(example: Example, tokenizer: Tokenizer, spec: CollateSpec, tiles_of: Sequence[int]) -> Tokens:
    """The columns of an example, or of a prompt if its last turn is a question.

    Raises:
      CapacityError: they are more than L and may not be cut; prompts never are.
    """
    common: dict[str, Any] = {
        "format": spec.format,
        "image_tokens": [count * spec.tokens_per_tile for count in tiles_of],
        "regions": len(example.regions),
        "counts": spec.counts,
        "wrap_images": spec.wrap_images,
    }
    if example.turns and example.turns[-1][0] == "human":
        columns = prompt(example.turns, tokenizer, **common)
    else:
        limit = spec.length if spec.truncate else None
        columns = tokenize(example.turns, tokenizer, max_length=limit, **common)
    _check("columns", len(columns.ids), spec.length, "raise the length, use fewer tiles, or truncate")
    return columns


def blank_row(tokenizer: Tokenizer, spec: CollateSpec, shape: TaskShape) -> Row:
    """A row of padding: it trains nothing and no column points anywhere."""
    length, size = shape.fitted(spec).length, spec.tile_size
    links, queries = sum(shape.links.values()), shape.queries(spec.counts)
    zeros = {name: np.zeros(length, np.int32) for name in ("source", "index", "positions", "segments")}
    return Row(
        tokens=np.full(length, tokenizer.ids.padding, np.int32),
        labels=np.full(length, IGNORE, np.int32),
        **zeros,
        tiles=np.zeros((shape.tiles, size, size, 3), np.uint8),
        masks=np.zeros((shape.regions, size, size), np.uint8),
        mask_tile=np.zeros(shape.regions, np.int32),
        link_position=np.zeros((links, queries), np.int32),
        link_valid=np.zeros(links, bool),
        targets={shape.decoder: DECODER_COLLATE[shape.decoder](None, shape)[0]} if shape.decoder else {},
        counters={"skipped": 0, "dropped_links": 0, "dropped_targets": 0},
    )


def collate(rows: Sequence[Row], spec: CollateSpec, shape: TaskShape) -> tuple[TaskRows, dict[str, int]]:
    """Stacks the rows of one task: `groups * shape.rows` of them, group after group.

    Returns:
      The rows of the task as numpy arrays leading with the group axis, and the sums of the rows' counters.
    """
    count = shape.rows
    groups = len(rows) // count

    def stack(name: str) -> np.ndarray:
        x = np.stack([getattr(row, name) for row in rows])
        return x.reshape(groups, count, *x.shape[1:])

    def pool(name: str) -> np.ndarray:  # [G, r, n, ...] -> [G, r * n, ...]
        x = stack(name)
        return x.reshape(groups, count * x.shape[2], *x.shape[3:])

    number = np.arange(count, dtype=np.int32)[:, None]  # of the row in its group
    source, index, mask_tile = stack("source"), stack("index"), stack("mask_tile")
    index += np.where(source == IMAGE, number * shape.tiles * spec.tokens_per_tile, 0).astype(np.int32)
    index += np.where(source == REGION, number * shape.regions, 0).astype(np.int32)
    inputs = Inputs(
        tokens=stack("tokens"),
        source=source,
        index=index,
        positions=stack("positions"),
        segments=stack("segments"),
        tiles=pool("tiles"),
        masks=pool("masks"),
        mask_tile=(mask_tile + number * shape.tiles).reshape(groups, count * shape.regions),
    )
    targets = {}
    for decoder in rows[0].targets:
        names = rows[0].targets[decoder]
        stacked = {name: np.stack([row.targets[decoder][name] for row in rows]) for name in names}
        targets[decoder] = {k: x.reshape(groups, count, *x.shape[1:]) for k, x in stacked.items()}
    batch = TaskRows(inputs, stack("labels"), stack("link_position"), stack("link_valid"), targets)
    return batch, {name: sum(row.counters[name] for row in rows) for name in rows[0].counters}


def _labels(columns: Tokens) -> np.ndarray:
    """Labels without the queries of links and without the first column, which nothing comes before."""
    labels = np.where(columns.source == LINK, IGNORE, columns.labels)
    labels[:1] = IGNORE
    return labels


def _index(columns: Tokens, counts: QueryCounts) -> np.ndarray:
    """`columns.index`, but queries are numbered by their row in the table of all queries."""
    index = columns.index.copy()
    for at in columns.links:
        bank = _LINKS[at.token].bank
        index[at.start : at.start + counts.of(bank)] += counts.offset(bank)
    return index


def _place_links(links: Sequence[LinkAt], row: Row, shape: TaskShape) -> int:
    """Writes the links' columns into their places in `row`; returns how many found none."""
    dropped, first = 0, 0
    for token, room in shape.links.items():
        starts = [at.start for at in links if at.token == token]
        if len(starts) > room and shape.strict:
            raise _too_many(f"[{token.upper()}] links", len(starts), room, "raise the task's `links`")
        dropped += max(0, len(starts) - room)
        for place, start in enumerate(starts[:room], start=first):
            row.link_position[place] = start + np.arange(row.link_position.shape[1])
            row.link_valid[place] = True
        first += room
    strangers = {at.token for at in links} - set(shape.links)
    if strangers:
        raise DataError(
            f"the answer has links {sorted(strangers)}, the task takes {sorted(shape.links)}",
            field="conversations",
            remedy="add them to the task's `links`",
        )
    return dropped


def _check(what: str, count: int, room: int, remedy: str) -> None:
    if count > room:
        raise _too_many(what, count, room, remedy)


def _too_many(what: str, count: int, room: int, remedy: str) -> CapacityError:
    return CapacityError(f"{count} {what} where there is room for {room}", remedy=remedy)
