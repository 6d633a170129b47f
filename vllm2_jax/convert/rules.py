# SPDX-License-Identifier: Apache-2.0
r"""Tables that turn official tensor names into our parameter paths, and back.

A table is a list of rows; a row says which official names become which leaf, and how the array is turned:

    Rule(r"encoder\.layers\.(\d+)\.mlp\.fc1\.weight", "blocks/mlp/up/kernel", TRANSPOSE)  # stacked
    Rule(r"stages\.(\d+)\.norm\.weight", "stages/{1}/norm/scale")                         # one leaf a stage
    Rule(r"attn\.qkv\.weight", ("q/kernel", "k/kernel", "v/kernel"), split(3, split_heads(16)))
    Ignore(r".*\.position_ids", "a buffer: 0, 1, 2, ...")
    Alias(r"head\.([1-9]\d*)\.(.*)", "head.0.{2}", copies=range(1, 6))                    # one shared tensor
    Buffer("attn.relative_position_index", lambda: distances(7))                          # follows from sizes

`{n}` in a path is the text of the pattern's n-th group. The one group that the path leaves out, `(\d+)`, is
the index on the first axis of a stacked leaf. A row can be read backwards (`convert.names`): the names
that a model needs follow from the model itself, and `load` demands that exactly those are there. Everything
wrong is collected and raised as one error.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vllm2_jax.convert import names
from vllm2_jax.convert.transforms import IDENTITY, Transform
from vllm2_jax.nn.paths import flatten_paths

Shape = tuple[int, ...]


class ConversionError(ValueError):
    """A checkpoint and a model do not fit; the message lists every misfit."""


class Misfit(NamedTuple):
    """One thing that does not fit, printed as "kind: name detail"."""

    kind: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}{self.detail}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Official names that fully match `pattern` fill the leaf (or leaves) `path`.

    Attributes:
      pattern: literal text with escaped dots, and groups; see the module's docstring.
      path: leaf path with `{n}` for groups; a tuple where one official tensor holds several leaves.
      transform: acts on the tensor of one layer.
    """

    pattern: str
    path: str | tuple[str, ...]
    transform: Transform = IDENTITY

    def __post_init__(self):
        names.pieces_of(self.pattern)
        free = {tuple(names.free_groups(self.pattern, path)) for path in self.paths}
        if len(free) > 1 or len(min(free)) > 1:
            raise ValueError(f"{self}: all paths must leave out the same group, and one at most")
        for group in min(free):
            if names.pieces_of(self.pattern)[2 * group - 1] != r"(\d+)":
                raise ValueError(rf"{self}: group {group} is not in the path, so it must be (\d+), a layer")

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def parts(self, leaves: Mapping[str, Shape]) -> Iterator["Part"]:
        """All official tensors that this row asks for, given a model's leaves."""
        free = names.free_groups(self.pattern, self.paths[0])
        read = names.reader(self.pattern, self.paths[0])
        start = self.paths[0].split("{")[0]  # tells most leaves apart faster than the regex
        for leaf, shape in leaves.items():
            if not leaf.startswith(start) or not (match := read.fullmatch(leaf)):
                continue
            groups = {int(name[1:]): text for name, text in match.groupdict().items()}
            paths = tuple(names.fill(path, groups) for path in self.paths)
            for layer in range(shape[0]) if free else [None]:
                known = groups | {group: str(layer) for group in free}
                yield Part(names.name_of(self.pattern, known), paths, layer, self)


@dataclasses.dataclass(frozen=True)
class Ignore:
    """Official names that fully match `pattern` are left out, for the stated reason."""

    pattern: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Alias:
    """Other official names of a tensor that a `Rule` already takes: one parameter, listed several times.

    Attributes:
      pattern: the other names, as in `Rule`.
      of: the name that the rule takes, with `{n}` for groups of `pattern`.
      copies: values of the one group that `of` leaves out, None if there is none.

    A checkpoint may hold any of the names (some writers drop shared tensors), but they must all be equal.
    """

    pattern: str
    of: str
    copies: Iterable[int] | None = None

    def __post_init__(self):
        if len(names.free_groups(self.pattern, self.of)) != (self.copies is not None):
            raise ValueError(f"{self}: `copies` belongs to the one group that `of` does not mention")

    def others(self, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
        """(another name, name) for all of `keys` that this row speaks of."""
        read = names.reader(self.pattern, self.of)
        free = names.free_groups(self.pattern, self.of)
        for key in keys:
            if match := read.fullmatch(key):
                groups = {int(name[1:]): text for name, text in match.groupdict().items()}
                for copy in [None] if self.copies is None else self.copies:
                    yield names.name_of(self.pattern, groups | {group: str(copy) for group in free}), key


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An official tensor that follows from the sizes: it fills no leaf, but official files have it.

    Attributes:
      key: its official name.
      value: makes it.
    """

    key: str
    value: Callable[[], np.ndarray]

    @property
    def pattern(self) -> str:
        """The name as a pattern."""
        return re.escape(self.key)


Row = Rule | Ignore | Alias | Buffer
Table = Sequence[Row]


def prefixed(table: Table, key: str, path: str) -> list[Row]:
    """The same table for a part of a bigger model: `key` before official names, `path` before leaf paths."""
    rows: list[Row] = []
    for row in table:
        pattern = re.escape(key) + row.pattern
        if isinstance(row, Rule):
            rows.append(Rule(pattern, tuple(path + p for p in row.paths), row.transform))
        elif isinstance(row, Alias):
            rows.append(Alias(pattern, key + row.of, row.copies))
        elif isinstance(row, Buffer):
            rows.append(Buffer(key + row.key, row.value))
        else:
            rows.append(Ignore(pattern, row.reason))
    return rows


@dataclasses.dataclass(frozen=True)
class Part:
    """One official tensor: the leaves it fills, at which layer of their first axis (None: the whole leaf)."""

    key: str
    paths: tuple[str, ...]
    layer: int | None
    rule: Rule


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a table says about one model, made from names and shapes alone.

    Attributes:
      leaves: shape of every leaf.
      parts: official name -> what it fills.
      sources: leaf -> its parts, in the order of layers.
      aliases: other name -> the official name in `parts` that it stands for.
      buffers: official name -> what makes it.
    """

    table: Table
    leaves: Mapping[str, Shape]
    parts: Mapping[str, Part]
    sources: Mapping[str, Sequence[Part]]
    aliases: Mapping[str, str]
    buffers: Mapping[str, Buffer]

    @classmethod
    def make(cls, table: Table, leaves: Mapping[str, Shape]) -> "Plan":
        """Raises ConversionError unless each leaf is filled by exactly one row and no name is used twice."""
        rules = [row for row in table if isinstance(row, Rule)]
        owners: dict[str, set[int]] = {leaf: set() for leaf in leaves}
        parts: dict[str, Part] = {}
        sources: dict[str, list[Part]] = {leaf: [] for leaf in leaves}
        wrong = []
        for number, rule in enumerate(rules):
            for part in rule.parts(leaves):
                if part.key in parts:
                    wrong.append(
                        f"used twice: {part.key} by {rule.pattern} and {parts[part.key].rule.pattern}"
                    )
                parts[part.key] = part
                for path in part.paths:
                    if path not in leaves:
                        wrong.append(
                            f"no such leaf: {path}, which {rule.pattern} fills beside {part.paths[0]}"
                        )
                        continue
                    owners[path].add(number)
                    sources[path].append(part)
        for leaf, numbers in owners.items():
            if len(numbers) != 1:
                by = ", ".join(rules[i].pattern for i in sorted(numbers)) or "no row of the table"
                wrong.append(f"not filled once: {leaf} {leaves[leaf]}, by {by}")
        _raise("the table does not fit the model", wrong)
        aliases = dict(pair for row in table if isinstance(row, Alias) for pair in row.others(parts))
        buffers = {row.key: row for row in table if isinstance(row, Buffer)}
        return cls(table, leaves, parts, sources, aliases, buffers)

    def check(self, shapes: Mapping[str, Shape]) -> dict[str, str]:
        """Compares a checkpoint's names and shapes with what the model needs.

        Returns:
          `stored(shapes)`.

        Raises:
          ConversionError: lists missing, unknown, ambiguous and misshapen tensors.
        """
        _raise("the checkpoint does not fit the model", [str(misfit) for misfit in self.misfits(shapes)])
        return self.stored(shapes)

    def stored(self, keys: Iterable[str]) -> dict[str, str]:
        """Official name in `parts` -> name to read it from: another one where only an alias is there."""
        there = set(keys)
        found = {key: key for key in self.parts if key in there}
        for name, key in self.aliases.items():
            if name in there:
                found.setdefault(key, name)
        return found

    def misfits(self, shapes: Mapping[str, Shape]) -> list["Misfit"]:
        """Everything that keeps a checkpoint of these names and shapes from filling the model."""
        stored = self.stored(shapes)
        wrong = [
            Misfit("missing", key, f", for {', '.join(part.paths)}")
            for key, part in self.parts.items()
            if key not in stored
        ]
        patterns = [
            (f"{type(row).__name__.lower()} {row.pattern}", re.compile(row.pattern), _start(row))
            for row in self.table
            if isinstance(row, Rule | Ignore)
        ]
        for key, shape in shapes.items():
            if key in self.buffers:
                expected = self.buffers[key].value().shape
                wrong += [Misfit("misshapen", key, f" {shape}, the model has {expected}")] * (
                    shape != expected
                )
                continue
            rows = [
                name for name, pattern, start in patterns if key.startswith(start) and pattern.fullmatch(key)
            ]
            if key in self.aliases:
                rows.append(f"alias of {self.aliases[key]}")
            if len(rows) > 1:
                wrong.append(Misfit("ambiguous", key, f" matches {' and '.join(rows)}"))
            elif not rows:
                wrong.append(Misfit("unknown", key, f" {shape} matches no row"))
            elif rows[0].startswith("rule") and key not in self.parts:
                wrong.append(Misfit("unknown", key, f" {shape} has no leaf in this model, by {rows[0]}"))
        for key, name in stored.items():
            wrong += self._misshapen(self.parts[key], name, shapes[name])
        return wrong

    def _misshapen(self, part: Part, name: str, shape: Shape) -> list["Misfit"]:
        want = [self.leaves[path][part.layer is not None :] for path in part.paths]
        try:  # an array of one element seen as many: shapes are transformed without memory
            turned = part.rule.transform.forward(np.broadcast_to(np.int8(0), shape))
        except (ValueError, IndexError) as error:
            return [Misfit("misshapen", name, f" {shape} for {part.paths[0]} {want[0]}: {error}")]
        turned = turned if isinstance(turned, tuple) else (turned,)
        if len(turned) != len(want):
            paths = ", ".join(part.paths)
            return [Misfit("misshapen", name, f" gives {len(turned)} arrays for the leaves {paths}")]
        return [
            Misfit("misshapen", name, f" {shape} gives {array.shape}, {path} is {expected}")
            for path, array, expected in zip(part.paths, turned, want, strict=True)
            if array.shape != expected
        ]

    def stacked(self, leaf: str) -> bool:
        """Whether the first axis of a leaf counts layers, each in an official tensor of its own."""
        return self.sources[leaf][0].layer is not None

    def read(
        self, leaf: str, fetch: Callable[[str], np.ndarray], dtype: DTypeLike, rows: slice = slice(None)
    ) -> np.ndarray:
        """One leaf from the tensors that `fetch` returns by official name: no more than it in memory.

        Args:
          leaf: its path.
          fetch: any official tensor by its name.
          dtype: of the result.
          rows: of the first axis; of a stacked leaf nothing else is fetched.
        """
        if not self.stacked(leaf):
            return self._turned(self.sources[leaf][0], leaf, fetch).astype(dtype)[rows]
        layers = range(self.leaves[leaf][0])[rows]
        out = np.empty((len(layers), *self.leaves[leaf][1:]), dtype)
        for part in self.sources[leaf]:
            if part.layer is not None and part.layer in layers:
                out[part.layer - layers.start] = self._turned(part, leaf, fetch).astype(dtype)
        return out

    @staticmethod
    def _turned(part: Part, leaf: str, fetch: Callable[[str], np.ndarray]) -> np.ndarray:
        turned = part.rule.transform.forward(np.asarray(fetch(part.key)))
        return turned[part.paths.index(leaf)] if isinstance(turned, tuple) else turned


def load(tensors: Mapping[str, Any], table: Table, model: Any, *, dtype: DTypeLike | None = None) -> Any:
    """Fills a model with official weights.

    Args:
      tensors: official name -> array. A lazy mapping is read leaf by leaf, if its values have a `shape`
        and turn into arrays when asked (`numpy.asarray`).
      table: rows for all names of the checkpoint.
      model: module or state, with arrays or abstract (`jax.eval_shape`). Leaves that carry a sharding are
        placed by it.
      dtype: dtype of all leaves; None keeps each leaf's own.

    Returns:
      A tree like `model` with new arrays; `model` itself does not change.

    Raises:
      ConversionError: names and shapes do not fit, or aliases of one tensor differ; lists everything.
    """
    leaves, treedef = flatten_paths(model)
    plan = Plan.make(table, {path: tuple(leaf.shape) for path, leaf in leaves.items()})
    stored = plan.check({key: tuple(value.shape) for key, value in tensors.items()})
    differing = [
        f"differing: {name} and {stored[key]} are one parameter in the model"
        for name, key in plan.aliases.items()
        if name in tensors and not np.array_equal(tensors[name], tensors[stored[key]])
    ]
    _raise("the checkpoint does not fit the model", differing)

    def place(path: str, leaf: Any) -> jax.Array:
        array = plan.read(path, lambda key: np.asarray(tensors[stored[key]]), dtype or leaf.dtype)
        if getattr(leaf, "sharding", None) is None:
            return jnp.asarray(array)
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])

    return jax.tree.unflatten(treedef, [place(path, leaf) for path, leaf in leaves.items()])


def export(model: Any, table: Table) -> dict[str, np.ndarray]:
    """Official names and arrays of a module, a state or a gradient: `load` backwards, aliases included.

    Raises:
      ConversionError: a leaf that no row, or more than one, writes.
    """
    leaves, _ = flatten_paths(model)
    plan = Plan.make(table, {path: tuple(leaf.shape) for path, leaf in leaves.items()})
    arrays = {path: np.asarray(leaf) for path, leaf in leaves.items()}

    def write(part: Part) -> np.ndarray:
        layer = ... if part.layer is None else part.layer
        return part.rule.transform.inverse(*(arrays[path][layer] for path in part.paths))

    out = {key: write(part) for key, part in plan.parts.items()}
    return out | {name: out[key] for name, key in plan.aliases.items()}


def _start(row: Rule | Ignore) -> str:
    """What all names of a row begin with: it tells most of them apart faster than the regex."""
    return names.pieces_of(row.pattern)[0] if isinstance(row, Rule) else ""


def _raise(title: str, wrong: Sequence[str]) -> None:
    if wrong:
        lines = "\n  ".join(sorted(wrong))
        raise ConversionError(f"{title}; correct the table or the model's config:\n  {lines}")
