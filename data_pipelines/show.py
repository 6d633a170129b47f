# SPDX-License-Identifier: Apache-2.0
"""Draws examples of a dataset on one sheet, with regions, boxes, masks and keypoints, and their conversation.

    python -m data_pipelines.show --task det --n 8 --out sheets
    python -m data_pipelines.show --task pose --set level=people decoder_size=320 --out sheets
    python -m data_pipelines.show --dataset llava --set annotations=chat.json image_root=images --out sheets

Writes OUT/<dataset or task>.png. `--set` gives options to the dataset's `load`.
"""

import argparse
import ast
import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines import DATASETS, draw
from data_pipelines.collate import CollateSpec
from data_pipelines.example import Example
from data_pipelines.mixture import open_source

_WIDTH = 300  # of one panel, in pixels
_GAP, _LINE = 8, 14
_PAPER, _INK, _ASK = (255, 255, 255), (25, 25, 30), (95, 95, 110)


def sheet(examples: Sequence[Example], columns: int = 4) -> Image.Image:
    """A contact sheet: every example's panels above its conversation."""
    cards = [_card(example) for example in examples]
    columns = min(columns, len(cards))
    rows = [cards[i : i + columns] for i in range(0, len(cards), columns)]
    width = max(sum(card.width + _GAP for card in row) for row in rows) + _GAP
    height = sum(max(card.height for card in row) + _GAP for row in rows) + _GAP
    page, y = Image.new("RGB", (width, height), (205, 208, 214)), _GAP
    for row in rows:
        x = _GAP
        for card in row:
            page.paste(card, (x, y))
            x += card.width + _GAP
        y += max(card.height for card in row) + _GAP
    return page


def panels(example: Example) -> list[tuple[str, Image.Image]]:
    """Titles and pictures: what the vision tower sees, then what each decoder gets, targets drawn in."""
    found = []
    for number, tiles in enumerate(example.images):
        picture = _scaled(tiles[-1])
        mine = example.regions[example.region_images == number]
        for region, mask in enumerate(mine):
            picture = draw.tint(picture, mask.astype(bool), draw.colour_of(region))
        note = f", {len(tiles)} tiles" if len(tiles) > 1 else ""
        found.append((f"picture {tiles.shape[1]} px{note}", picture))
    for decoder, targets in example.targets.items():
        if "input" in targets:
            found.append((f"{decoder}: input", _scaled(targets["input"])))
        found.append((decoder, _draw_targets(targets, example.meta)))
    return found


def _draw_targets(targets: Mapping[str, Any], meta: Mapping[str, Any]) -> Image.Image:
    picture = _scaled(targets["image"])
    labels = [int(label) for label in targets.get("labels", ())]
    for mask, label in zip(targets.get("masks", ()), labels, strict=False):
        picture = draw.tint(picture, mask, draw.colour_of(label))
    size = np.array(picture.size)
    for box, label in zip(targets.get("boxes", ()), labels, strict=False):
        corners = np.concatenate([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2]) * np.tile(size, 2)
        draw.box(picture, corners, draw.colour_of(label), meta["classes"][label])
    for points, visibility in zip(targets.get("keypoints", ()), targets.get("visibility", ()), strict=False):
        draw.skeleton(picture, points * size, visibility, meta["keypoints"])
    return picture


def _card(example: Example) -> Image.Image:
    shown = panels(example)
    width = max(_WIDTH, sum(picture.width + _GAP for _, picture in shown) - _GAP)
    lines = []
    for who, text in example.turns:
        text = re.sub(r"(\[EMB\d?\])+", "", text).replace("<image>\n", "")
        mark, colour = ("Q  ", _ASK) if who == "human" else ("A  ", _INK)
        wrapped = textwrap.wrap(text, int(width / 6.4), initial_indent=mark, subsequent_indent="    ")
        lines += [(line, colour) for line in wrapped]
    top = max((picture.height + _LINE + 4 for _, picture in shown), default=0)
    card = Image.new("RGB", (width, top + len(lines) * _LINE + 10), _PAPER)
    pen, x = ImageDraw.Draw(card), 0
    for title, picture in shown:
        pen.text((x + 3, 1), title, _ASK, draw.font())
        card.paste(picture, (x, _LINE + 2))
        x += picture.width + _GAP
    for number, (line, colour) in enumerate(lines):
        pen.text((4, top + 4 + number * _LINE), line, colour, draw.font())
    return card


def _scaled(image: np.ndarray) -> Image.Image:
    height, width = image.shape[:2]
    scale = _WIDTH / max(height, width)
    size = (round(width * scale), round(height * scale))
    return Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)


def _option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a plain string
        return key, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="synthetic", choices=sorted(DATASETS))
    parser.add_argument("--task", help="task of the synthetic dataset")
    parser.add_argument("--n", type=int, default=8, help="how many examples")
    parser.add_argument("--start", type=int, default=0, help="number of the first one")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--tile-size", type=int, default=224, help="side of a tile in pixels")
    parser.add_argument("--set", nargs="*", default=[], type=_option, metavar="KEY=VALUE")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the PNG")
    args = parser.parse_args()
    options = dict(args.set)
    if args.dataset == "synthetic":
        options["task"] = args.task or "chat"
        options.setdefault("level", "people" if args.task == "pose" else "full")
    # Of what a row has, loaders take the size of a tile only.
    spec = CollateSpec(length=0, tile_size=args.tile_size, tokens_per_tile=0)
    source = open_source(args.dataset, options, spec=spec, seed=0)
    last = min(args.start + args.n, len(source))
    if not 0 <= args.start < last:
        parser.error(f"--start {args.start} --n {args.n}: the dataset has {len(source)} records")
    page = sheet([source[i] for i in range(args.start, last)], args.columns)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{options.get('task', args.dataset)}.png"
    page.save(path)
    print(f"wrote {path}, {page.width} x {page.height} pixels")


if __name__ == "__main__":
    main()
