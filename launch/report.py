# SPDX-License-Identifier: Apache-2.0
"""`report.html`: one file with scores, loss curve, questions and answers, and what decoders saw."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from launch.draw import draw_classes, draw_objects
from launch.heldout import Answered, Case, Results
from launch.paintings import Painting
from launch.perceive import Seen
from launch.sights import SHOWN
from launch.truth import classes_of, keypoint_names, objects_of, picture_size
from vllm2_jax.evals.exact_match import matches

_SIDE = 180  # pixels of a picture's side
_WIDE = 420  # pixels of the longer side of a picture with objects
_SURE = 0.3  # score from which on a predicted object is drawn

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#1e293b}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;text-align:right}
th:first-child,td:first-child{text-align:left}tr{border-bottom:1px solid #e2e8f0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:1em}
.card{border:1px solid #e2e8f0;border-left:5px solid #16a34a;border-radius:6px;padding:.7em}
.card.wrong{border-left-color:#dc2626}.card img{width:180px;height:180px;image-rendering:pixelated}
.q{font-weight:600}.small{color:#64748b;font-size:13px}
.seen{border:1px solid #e2e8f0;border-radius:6px;padding:.7em;margin:1em 0}
.pair{display:flex;flex-wrap:wrap;gap:1em}.pair figure{margin:0}.pair img{max-width:100%}
"""


def write_report(
    path: epath.Path,
    results: Results,
    scores: Mapping[str, Mapping[str, float]],
    log: Sequence[Mapping[str, Any]],
) -> None:
    """Writes the report.

    Args:
      path: of the file.
      results: what the model said, and what its decoders saw and painted.
      scores: column title -> metric -> share.
      log: lines of `metrics.jsonl`, for the curve.
    """
    sections = []
    for task in dict.fromkeys(one.case.task for one in results.answers):
        first = [one for one in results.answers if one.case.task == task][:SHOWN]
        sections.append(f"<h2>{html.escape(task)}</h2><div class=cards>{''.join(map(_card, first))}</div>")
    for name, seen in results.seen.items():
        shown = [_sight(one) for one in seen]
        sections.append(f"<h2>{html.escape(name)}</h2>{''.join(shown)}")
    for name, painted in results.painted.items():
        shown = [_painting(one) for one in painted]
        sections.append(f"<h2>{html.escape(name)}</h2><div class=cards>{''.join(shown)}</div>")
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title>"
        f"<style>{_STYLE}</style><h1>Held out</h1>{_table(scores)}"
        f"<h2>Training</h2>{_curve(log)}{''.join(sections)}</html>\n",
        encoding="utf-8",
    )


def _table(scores: Mapping[str, Mapping[str, float]]) -> str:
    titles = "".join(f"<th>{html.escape(title.replace('_', ' '))}</th>" for title in scores)
    first = next(iter(scores.values()))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(
            f"<td>{column[name]:.3f}</td>" if name in column else "<td></td>" for column in scores.values()
        )
        + "</tr>"
        for name in first
        if name != "count"
    )
    asked = f"<p>{int(first['count'])} questions.</p>" if "count" in first else ""
    return f"<table><tr><th></th>{titles}</tr>{rows}</table>{asked}"


def _card(answered: Answered) -> str:
    case, answer = answered.case, answered.answer
    right = any(matches(answer.text, truth) for truth in case.asked.answers)
    truth = "" if right else f"<div class=small>truth: {html.escape(case.truth)}</div>"
    kind = "" if case.kind == case.task else f" ({html.escape(case.kind)})"
    return (
        f"<div class='card{'' if right else ' wrong'}'>{_picture(case)}"
        f"<div class=q>{html.escape(_readable(case.question))}</div>"
        f"<div>{html.escape(answer.text) or '<i>nothing</i>'}</div>{truth}"
        f"<div class=small>{html.escape(case.example.record)}{kind}</div></div>"
    )


def _sight(seen: Seen) -> str:
    """What a decoder found beside what is there."""
    example, decoder = seen.example, seen.decoder
    height, width = picture_size(example, decoder)
    pixels = np.asarray(Image.fromarray(example.targets[decoder]["image"]).resize((width, height)))
    if seen.classes is not None:
        pair = [draw_classes(pixels, classes) for classes in (seen.classes, classes_of(example, decoder))]
    else:
        marks: dict[str, Any] = {"names": sorted(set(example.meta["classes"]))}
        if seen.objects.keypoints is not None:
            marks["keypoints"] = keypoint_names(example, decoder)
        truth = draw_objects(pixels, objects_of(example, decoder), **marks)
        pair = [draw_objects(pixels, seen.objects, threshold=_SURE, **marks), truth]
    figures = "".join(
        f"<figure>{_image(page, _WIDE)}<figcaption class=small>{title}</figcaption></figure>"
        for page, title in zip(pair, (f"found (score above {_SURE})", "truth"), strict=True)
    )
    question = next(text for who, text in example.turns if who == "human")
    return (
        f"<div class=seen><div class=q>{html.escape(_readable(question))}</div>"
        f"<div class=pair>{figures}</div><div class=small>{html.escape(example.record)}</div></div>"
    )


def _painting(painting: Painting) -> str:
    """What a decoder painted, after what it started from and before what was wanted."""
    pages = {"before": painting.before, "painted": painting.picture, "truth": painting.wanted}
    figures = "".join(
        f"<figure>{_large(page)}<figcaption class=small>{title}</figcaption></figure>"
        for title, page in pages.items()
        if page is not None
    )
    request = next(text for who, text in painting.example.turns if who == "human")
    return (
        f"<div class=card><div class=pair>{figures}</div><div class=q>{html.escape(_readable(request))}</div>"
        f"<div class=small>{html.escape(painting.example.record)}</div></div>"
    )


def _readable(question: str) -> str:
    for mark in ("<image>", "<region>", "<reg>", "</reg>"):
        question = question.replace(mark, "")
    return question.strip()


def _picture(case: Case) -> str:
    """The picture with the regions of the question in white outline; nothing for text alone."""
    if not case.example.images:
        return ""
    pixels = case.example.images[0][-1].copy()
    for mask in case.example.regions.astype(bool):
        inner = mask.copy()
        inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        pixels[mask & ~inner] = 255
    return _large(pixels)


def _large(pixels: np.ndarray) -> str:
    """A small picture with its pixels as squares."""
    return _image(Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST))


def _image(picture: Image.Image, longest: int = 0) -> str:
    """A picture inside the page, shrunk to its longest side."""
    if longest and max(picture.size) > longest:
        picture.thumbnail((longest, longest))
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f"<img alt='' src='data:image/png;base64,{data}'>"


def _curve(log: Sequence[Mapping[str, Any]]) -> str:
    """The training loss over steps as a small SVG, on a logarithmic scale."""
    points = {line["step"]: line["loss"] for line in log if line.get("loss")}
    if len(points) < 2:
        return "<p>No curve: fewer than two logged steps.</p>"
    steps, losses = np.array(sorted(points)), np.array([points[step] for step in sorted(points)])
    low, high = np.log(losses.min()), np.log(losses.max())
    x = 50 + 730 * (steps - steps[0]) / (steps[-1] - steps[0])
    y = 190 - 170 * (np.log(losses) - low) / max(high - low, 1e-9)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        "<svg viewBox='0 0 800 220' width=800 role=img aria-label='training loss'>"
        f"<polyline points='{line}' fill=none stroke=#2563eb stroke-width=2 />"
        f"<text x=4 y=24 font-size=12>{losses.max():.3g}</text>"
        f"<text x=4 y=194 font-size=12>{losses.min():.3g}</text>"
        f"<text x=50 y=214 font-size=12>step {steps[0]}</text>"
        f"<text x=780 y=214 font-size=12 text-anchor=end>{steps[-1]}</text></svg>"
    )
