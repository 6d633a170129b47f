# SPDX-License-Identifier: Apache-2.0
"""Squares, captions and padding of the decoders that paint; they are what the decoders say they read."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.collate import DECODER_COLLATE, TaskShape
from data_pipelines.collate_diffusion import central_square
from data_pipelines.errors import DataError
from tests.decoders.diffusion.tiny import PAINTERS, config

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
TASKS = {
    "stable_diffusion": (False, {"gen": 1}, {"image": IMAGE, "caption": "a star"}),
    "instruct_pix2pix": (True, {"edit": 1}, {"image": IMAGE, "input": IMAGE[::-1], "caption": "turn it"}),
}


def shape(name, **capacities):
    return TaskShape(rows=1, decoder=name, links=TASKS[name][1], capacities=capacities)


@pytest.mark.parametrize("name", TASKS)
def test_arrays_are_those_of_the_decoders_example(name):
    edits, _, targets = TASKS[name]
    sizes = config(edits=edits)
    capacities = {"size": sizes.size, "caption": sizes.text.length}
    example = PAINTERS[edits].example(1, sizes)
    for given in (targets, None):
        arrays, dropped = DECODER_COLLATE[name](given, shape(name, **capacities))
        assert dropped == 0
        assert {k: (x.shape, x.dtype) for k, x in arrays.items()} == {
            k: (x.shape[1:], x.dtype) for k, x in example.items()
        }
        assert arrays["image"].any() == (given is not None)
        assert arrays["has_caption"] == (given is not None)


def test_generation_pads_and_editing_crops():
    paint, _ = DECODER_COLLATE["stable_diffusion"](
        TASKS["stable_diffusion"][2], shape("stable_diffusion", size=30, caption=5)
    )
    np.testing.assert_array_equal(paint["image"][:, 5:25], IMAGE)
    assert (paint["image"][:, :5] == 255).all() and (paint["image"][:, 25:] == 255).all()
    edit, _ = DECODER_COLLATE["instruct_pix2pix"](
        TASKS["instruct_pix2pix"][2], shape("instruct_pix2pix", size=20, caption=5)
    )
    np.testing.assert_array_equal(edit["image"], IMAGE[5:25])
    np.testing.assert_array_equal(edit["input"], IMAGE[::-1][5:25])


def test_the_shorter_side_is_resized_bilinearly():
    found = central_square(IMAGE, 10)
    want = np.asarray(Image.fromarray(IMAGE).resize((10, 15), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, want[2:12])


def test_a_row_may_lack_its_caption():
    targets = {"image": IMAGE, "caption": None}
    arrays, _ = DECODER_COLLATE["stable_diffusion"](targets, shape("stable_diffusion", size=8, caption=5))
    assert not arrays["has_caption"]


def test_what_raises():
    name = "stable_diffusion"
    whole = {"size": 8, "caption": 5}
    with pytest.raises(DataError, match=r"float64 .* is no picture"):
        DECODER_COLLATE[name]({"image": IMAGE / 2}, shape(name, **whole))
    with pytest.raises(DataError, match="NoneType is no picture"):
        DECODER_COLLATE[name]({}, shape(name, **whole))
    for missing in whole:
        rest = {key: value for key, value in whole.items() if key != missing}
        with pytest.raises(DataError, match=f"does not say the {missing}"):
            DECODER_COLLATE[name](None, shape(name, **rest))
