# SPDX-License-Identifier: Apache-2.0
"""Regular expressions that are read backwards: from groups to the name that would match.

A pattern is literal text (dots escaped) and plain groups without nesting; a template is text in which `{n}`
stands for the n-th group.
"""

import re
from collections.abc import Mapping


def pieces_of(pattern: str) -> list[str]:
    """Literal text (unescaped) and groups (as they stand) in turn, literal first and last.

    Raises:
      ValueError: anything else in the pattern, which could not be read backwards.
    """
    pieces = re.split(r"(\([^()]*\))", pattern)
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            if re.search(r"(?<!\\)[.^$*+?{}\[\]|()]|\\\w", piece):
                raise ValueError(
                    f"pattern {pattern!r} cannot be read backwards at {piece!r}: escape or group it"
                )
            pieces[i] = re.sub(r"\\(.)", r"\1", piece)
        elif piece.startswith("(?"):
            raise ValueError(f"pattern {pattern!r}: only plain groups, not {piece}")
    return pieces


def name_of(pattern: str, groups: Mapping[int, str]) -> str:
    """The text that matches `pattern` with these groups."""
    pieces = pieces_of(pattern)
    name = "".join(piece if i % 2 == 0 else groups[(i + 1) // 2] for i, piece in enumerate(pieces))
    if not re.fullmatch(pattern, name):
        raise ValueError(f"pattern {pattern!r} does not match {name!r}, the name it would be exported to")
    return name


def free_groups(pattern: str, template: str) -> list[int]:
    """Groups of `pattern` that `template` does not mention."""
    count = len(pieces_of(pattern)) // 2
    named = {int(n) for n in re.findall(r"\{(\d+)\}", template)}
    if not named <= set(range(1, count + 1)):
        raise ValueError(f"{template!r} mentions a group that {pattern!r} does not have")
    return [group for group in range(1, count + 1) if group not in named]


def fill(template: str, groups: Mapping[int, str]) -> str:
    """The template with the text of its groups."""
    return re.sub(r"\{(\d+)\}", lambda m: groups[int(m[1])], template)


def reader(pattern: str, template: str) -> re.Pattern[str]:
    """A regex for filled templates, whose named groups `g1`, `g2`, ... are the groups of `pattern`."""
    groups = pieces_of(pattern)[1::2]
    seen: set[str] = set()
    out = ""
    for i, piece in enumerate(re.split(r"\{(\d+)\}", template)):
        if i % 2 == 0:
            out += re.escape(piece)
        elif piece in seen:
            out += f"(?P=g{piece})"
        else:
            seen.add(piece)
            out += f"(?P<g{piece}>{groups[int(piece) - 1][1:-1]})"
    return re.compile(out)
