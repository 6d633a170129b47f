# SPDX-License-Identifier: Apache-2.0
"""Lists of keypoints: their names, which is whose mirror image, which are joined by a bone.

`assets/keypoint_sets.json` holds facts about public datasets. Of each set:

  names    in the order of the annotations, lower case, without punctuation
  chains   indices; a bone lies between neighbours. Datasets that publish none have none, but for faces and
           hands, where the names tell
  sigmas   spread of each point around its truth by the set's own evaluation. (The decoder and the official
           metrics take COCO's by position, see `vllm2_jax.evals.pose`.)
  mirror   pairs that change places in a mirror although their names do not say so, or false where a mirrored
           object has no place in the list
  like     another set with the same list
"""

import dataclasses
import functools
import importlib.resources
import itertools
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from data_pipelines.templates import clean_name

MOST = 68  # keypoints of the largest set (300W); the decoder knows no more

_SIDE = re.compile(r"\b(left|right)")  # also in "legs lefttopcorner"
_OTHER = {"left": "right", "right": "left"}


@dataclasses.dataclass(frozen=True)
class KeypointSet:
    """The keypoints of a dataset.

    Attributes:
      names: P of them, all different.
      chains: a bone lies between neighbours of each.
      sigmas: None where the dataset has none of its own.
      mirror: point i of a mirrored picture is point `mirror[i]` of the picture; None if it cannot be known.
    """

    names: tuple[str, ...]
    chains: tuple[tuple[int, ...], ...] = ()
    sigmas: tuple[float, ...] | None = None
    mirror: tuple[int, ...] | None = None

    @property
    def bones(self) -> list[tuple[int, int]]:
        """Pairs of points that are joined."""
        return [pair for chain in self.chains for pair in itertools.pairwise(chain)]


def clean(name: str) -> str:
    """A name as the official code writes it: lower case, blanks for - / _, no other punctuation."""
    return clean_name(name.replace("\u2019", ""))


def side(name: str) -> str:
    """ "left", "right" or "", whatever stands first in a clean name."""
    found = _SIDE.search(name)
    return found.group() if found else ""


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Clean names; one that comes again gets its number behind it, one without letters "point"."""
    found: list[str] = []
    for name in names:
        name = clean(name) or "point"
        numbered = (f"{name} {n}" if n > 1 else name for n in itertools.count(1))
        found.append(next(text for text in numbered if text not in found))
    return tuple(found)


def mirror_of(names: Sequence[str], pairs: Collection[Sequence[int]] = ()) -> tuple[int, ...] | None:
    """Which point takes the place of which in a mirrored picture.

    Args:
      names: clean and distinct. All their "left" become "right" and the other way round.
      pairs: points that change places whatever their names are.

    Returns:
      A permutation that is its own inverse, or None if some point's other side is not in the list.
    """
    order = {i: j for pair in pairs for i, j in itertools.permutations(pair, 2)}
    at = {name: i for i, name in enumerate(names)}
    for i, name in enumerate(names):
        twin = _SIDE.sub(lambda found: _OTHER[found.group()], name)
        if i not in order:
            if twin not in at or order.get(at[twin], i) != i:
                return None
            order[i] = at[twin]
    return tuple(order[i] for i in range(len(names)))


def named(names: Sequence[str]) -> KeypointSet:
    """The set of a file that brings its own names: the known one with these names, or a new one.

    A new one without any left or right has no mirror: nothing tells whether its points change places.
    """
    own = distinct(names)
    known = next((known for known in SETS.values() if known.names == own), None)
    return known or KeypointSet(own, mirror=mirror_of(own) if any(map(side, own)) else None)


@functools.lru_cache(maxsize=256)
def bones_among(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Bones between some of a set's points, as indices into `names`; empty names are no points.

    The set is the one that has most of the names, the first in the file if several do.
    """
    at = {name: i for i, name in enumerate(names) if name}
    known = max(SETS.values(), key=lambda known: len(at.keys() & set(known.names)))
    ends = ((known.names[i], known.names[j]) for i, j in known.bones)
    return tuple((at[a], at[b]) for a, b in ends if a in at and b in at)


def _read() -> dict[str, KeypointSet]:
    text = importlib.resources.files("data_pipelines").joinpath("assets/keypoint_sets.json")
    entries: dict[str, dict[str, Any]] = json.loads(text.read_text(encoding="utf-8"))
    return {key: _set(entries[entry.get("like", key)]) for key, entry in entries.items()}


def _set(entry: dict[str, Any]) -> KeypointSet:
    names, pairs = distinct(entry["names"]), entry.get("mirror", ())
    return KeypointSet(
        names,
        tuple(map(tuple, entry.get("chains", ()))),
        tuple(entry["sigmas"]) if "sigmas" in entry else None,
        None if pairs is False else mirror_of(names, pairs),
    )


SETS = _read()
