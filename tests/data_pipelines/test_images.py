# SPDX-License-Identifier: Apache-2.0
"""Decoding and tiling of pictures, against the golden files and by hand."""

import errno
import io
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines import images, mask_files
from data_pipelines.errors import DataError
from tests.parity import compare
from tests.parity import images as golden
from vllm2_jax.vision.pixels import CLIP_STD, normalize

GOLDENS = pathlib.Path(__file__).parents[1] / "golden" / "core"


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)


def test_goldens():
    results = [compare(*case) for case in golden.cases(GOLDENS)]
    assert len(results) == 22
    assert all(result.ok for result in results), "\n".join(map(str, results))


def test_stretched_tiles_are_the_goldens_rounded():
    data = np.load(GOLDENS / "preprocess.npz")
    tile = images.Tiling("stretch", 56)(data["0/image"])[0]
    got = np.asarray(normalize(jnp.asarray(tile), jnp.float32)).transpose(2, 0, 1)
    half_a_level = 0.5 / 255 / CLIP_STD.min()
    assert np.abs(got - data["0/region_branch_pixel_values"]).max() < half_a_level + 1e-4


def test_tiling_for_regions_never_loses_content():
    assert images.Tiling("anyres", 28).for_regions.mode == "anyres"
    assert images.Tiling("pad", 28).for_regions == images.Tiling("stretch", 28)


def test_tiles_are_row_major_and_the_whole_comes_last():
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 20:] = 200
    tiles = images.anyres(picture, 10, 2)
    assert tiles.shape == (3, 10, 10, 3)
    assert tiles[0, :, :8].max() == 0 and tiles[1, :, 2:].min() == 200
    assert tiles[2, :, :3].max() == 0 and tiles[2, :, 7:].min() == 200


def test_small_square_picture_is_one_tile():
    assert images.Tiling("anyres", 28, 4)(np.zeros((28, 28, 3), np.uint8)).shape == (1, 28, 28, 3)


def test_unknown_mode():
    with pytest.raises(ValueError, match="unknown tiling mode 'any'"):
        images.Tiling("any", 28)


@pytest.mark.parametrize("source", ["path", "bytes"])
def test_load_rgb(photo, tmp_path, source):
    data = encode(Image.fromarray(photo))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    np.testing.assert_array_equal(images.load_image(path if source == "path" else data), photo)


def test_load_grey_and_palette(photo):
    grey = Image.fromarray(photo).convert("L")
    got = images.load_image(encode(grey))
    np.testing.assert_array_equal(got, np.repeat(np.asarray(grey)[..., None], 3, 2))
    palette = Image.fromarray(photo).convert("P")
    np.testing.assert_array_equal(images.load_image(encode(palette)), np.asarray(palette.convert("RGB")))


def test_load_16_bits_scales_instead_of_clipping():
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    got = images.load_image(encode(Image.fromarray(values)))
    np.testing.assert_array_equal(got[..., 0], [[0, 0, 1], [128, 255, 255]])


def test_load_lays_transparency_over_white(photo):
    alpha = np.zeros((30, 50, 1), np.uint8)
    alpha[:, 25:] = 255
    got = images.load_image(encode(Image.fromarray(np.concatenate([photo, alpha], 2))))
    assert (got[:, :25] == 255).all()
    np.testing.assert_array_equal(got[:, 25:], photo[:, 25:])


def test_load_cmyk():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    got = images.load_image(encode(red, "JPEG", quality=95))
    assert (np.abs(got.astype(int) - [254, 0, 0]) < 6).all()


def test_load_turns_by_exif(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    got = images.load_image(encode(Image.fromarray(photo), exif=exif))
    np.testing.assert_array_equal(got, np.rot90(photo, -1))


def test_missing_picture_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such picture. Remedy: check image_root") as caught:
        images.load_image(tmp_path / "gone.jpg")
    assert "gone.jpg" in str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_truncated_picture_is_named(photo, tmp_path, format):
    path = tmp_path / "half.img"
    data = encode(Image.fromarray(photo), format)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"half.img: cannot be decoded .*truncated"):
        images.load_image(path)


@pytest.mark.parametrize(
    "read", [images.load_image, lambda path: mask_files.read_mask(path, (1, 1), record="1")]
)
def test_a_machine_that_cannot_read_is_no_bad_record(tmp_path, monkeypatch, read):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(tmp_path / "x.png")
    assert not isinstance(caught.value, ValueError)


def test_text_is_no_picture(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"page.jpg: cannot be decoded .*identify"):
        images.load_image(path)


def test_bilinear_keeps_a_ramp():
    ramp = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 5), np.float32)
    got = images.bilinear(ramp, 16, 5)
    # Pixel centres at .5: output row r lies at r / 2 - 0.25, and the borders repeat.
    want = np.clip(np.arange(16) / 2 - 0.25, 0, 7)
    np.testing.assert_allclose(got[:, 0], want, atol=1e-6)
