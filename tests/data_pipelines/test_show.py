# SPDX-License-Identifier: Apache-2.0
"""Contact sheets show every example, with what it marks drawn in."""

import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import draw, show
from data_pipelines.datasets.synthetic import TASKS, load


def source(task):
    return load(task=task, tile_size=56, decoder_size=56, level="people" if task == "pose" else "full")


@pytest.mark.parametrize("task", TASKS)
def test_a_sheet_of_every_task(task):
    examples = [source(task)[index] for index in range(3)]
    page = show.sheet(examples, columns=2)
    panels = [len(show.panels(example)) for example in examples]
    expected = {"text": 0, "chat": 1, "caption": 1, "region": 1, "t2i": 1, "edit": 3}.get(task, 2)
    assert panels == [expected] * 3
    assert page.width >= 2 * 300 and np.asarray(page).std() > 10


def test_marks_are_drawn():
    example = source("det")[0]
    (_, plain), (_, drawn) = show.panels(example)
    targets = example.targets["grounding_dino"]
    box = targets["boxes"][0]
    x, y = ((box[:2] - box[2:] / 2) * drawn.size).astype(int) + np.array([1, 20])
    colour = draw.colour_of(int(targets["labels"][0]))
    assert colour in {drawn.getpixel((int(x) + dx, int(y))) for dx in (-1, 0, 1)}
    region = source("region")[0]
    ((_, picture),) = show.panels(region)
    assert np.any(np.asarray(picture) != np.asarray(show._scaled(region.images[0][-1])))
    assert plain.size == (300, 300)


def test_the_command(tmp_path, monkeypatch, capsys):
    options = ["--task", "det", "--n", "2", "--tile-size", "28", "--set", "level=easy", "decoder_size=28"]
    monkeypatch.setattr(sys, "argv", ["show", *options, "--out", str(tmp_path)])
    show.main()
    assert "det.png" in capsys.readouterr().out
    assert Image.open(tmp_path / "det.png").width > 600
    monkeypatch.setattr(sys, "argv", ["show", "--set", "length=3", "--start", "5", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        show.main()
    assert "the dataset has 3 records" in capsys.readouterr().err


def test_the_command_with_a_dataset_without_tiles(tmp_path, monkeypatch):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    (tmp_path / "captions.json").write_text('[{"image": "a.png", "caption": "a dog"}]')
    options = ["--dataset", "text_to_image", "--out", str(tmp_path), "--set"]
    monkeypatch.setattr(sys, "argv", ["show", *options, f"annotations={tmp_path}/captions.json"])
    show.main()
    assert (tmp_path / "text_to_image.png").exists()
    monkeypatch.setattr(sys, "argv", ["show", *options, "annotation=captions.json"])
    with pytest.raises(ValueError, match=r"does not take \['annotation'\]; it takes annotations"):
        show.main()
