# SPDX-License-Identifier: Apache-2.0
"""A sweep as a picture: for each combination its memory against the chip's, and its time."""

import html

from launch.compile_report import Report
from launch.sweep import Ranking
from vllm2_jax.sharding.report import readable

_ROW, _TOP, _NAMES, _BAR, _GAP = 26, 56, 440, 260, 70  # pixels
_FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="13"'
_MEMORY, _SURE, _MAYBE, _WRONG, _INK = "#3b82f6", "#0f766e", "#99f6e4", "#dc2626", "#334155"


def chart(ranking: Ranking, title: str) -> str:
    """An SVG, in the order of the ranking.

    Memory is drawn up to the largest memory of a chip in the ranking, time from what is sure (all that is not
    overlapped with computation left out) to the sum of computation and communication. What does not fit, or
    cannot be, is red and says why.
    """
    reports = [found for _, found in ranking if isinstance(found, Report) and found.memory is not None]
    room = max([r.memory.total for r in reports if r.memory] + [r.hbm for r in reports if r.chip], default=1)
    slowest = max((r.times.worst for r in reports if r.times), default=0.0)
    right = _NAMES + 2 * _BAR + 2 * _GAP
    parts = [
        _text(16, 24, title, weight="bold"),
        _text(_NAMES, 46, "memory of a device"),
        _text(_NAMES + _BAR + _GAP, 46, "step: at best, at worst"),
    ]
    for number, (name, found) in enumerate(ranking):
        y = _TOP + _ROW * number
        parts.append(_text(16, y + 16, name))
        if isinstance(found, str) or found.memory is None:
            why = found if isinstance(found, str) else f"does not fit: {found.problem}"
            parts.append(_text(_NAMES, y + 16, why if len(why) <= 95 else why[:94] + "…", fill=_WRONG))
            continue
        total = found.memory.total
        parts.append(_bar(_NAMES, y, _BAR * total / room, _WRONG if total > found.hbm else _MEMORY))
        if found.chip is not None:
            x = _NAMES + _BAR * found.hbm / room
            parts.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 22}" stroke="{_INK}"/>')
        parts.append(_text(_NAMES + _BAR * total / room + 6, y + 16, readable(total)))
        if found.times is not None:
            x, best, worst = _NAMES + _BAR + _GAP, found.times.best, found.times.worst
            parts.append(_bar(x, y, _BAR * worst / slowest, _MAYBE))
            parts.append(_bar(x, y, _BAR * best / slowest, _SURE))
            share = f"{best:.2f} to {worst:.2f} s, MFU {found.mfu(worst):.0%}"
            parts.append(_text(x + _BAR * worst / slowest + 6, y + 16, share))
    height = _TOP + _ROW * len(ranking) + 12
    size = f'width="{right + 120}" height="{height}" viewBox="0 0 {right + 120} {height}"'
    background = f'<rect width="{right + 120}" height="{height}" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {_FONT}>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, *, fill: str = _INK, weight: str = "normal") -> str:
    words = html.escape(words)
    return f'<text x="{x:.1f}" y="{y}" fill="{fill}" font-weight="{weight}">{words}</text>'


def _bar(x: float, y: float, width: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y + 3}" width="{max(width, 1):.1f}" height="16" fill="{fill}"/>'
