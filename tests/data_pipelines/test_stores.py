# SPDX-License-Identifier: Apache-2.0
"""Records in every kind of file, and files that are broken."""

import io
import json
import pathlib
import tarfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from data_pipelines.errors import DataError
from data_pipelines.stores import dig, open_records, picture_at, text_at

ROOT = pathlib.Path("unused")


def picture(seed: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """A random picture of 8 x 6 pixels, encoded."""
    bands = {"RGB": 3, "L": 1, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, bands), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(file, kind)
    return file.getvalue()


def write_tar(path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return str(path)


def write_table(path, rows: int, group: int = 2) -> str:
    columns = {
        "image": [{"bytes": picture(i), "path": None} for i in range(rows)],
        "caption": [f"caption {i}" for i in range(rows)],
    }
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return str(path)


def test_samples_of_a_shard(tmp_path):
    file = write_tar(
        tmp_path / "a.tar",
        {
            "x/01.jpg": picture(1, kind="JPEG"),
            "x/01.txt": b" a dog ",
            "x/02.input.png": picture(2),
            "x/02.output.png": picture(3),
            "x/02.json": json.dumps({"instruction": "turn it", "n": [1, {"k": 5}]}).encode(),
            "y/02.cls": b"\x07",
        },
    )
    records = open_records(file)
    assert [record["id"] for record in records] == ["x/01", "x/02", "y/02"]
    assert records[0]["caption"] == " a dog "
    assert text_at(records[0], "caption", file=file, index=0) == "a dog"
    assert picture_at(records[0], "image", ROOT, file=file, index=0).shape == (6, 8, 3)
    np.testing.assert_array_equal(
        picture_at(records[1], "output", ROOT, file=file, index=1),
        np.asarray(Image.open(io.BytesIO(picture(3)))),
    )
    assert dig(records[1], "n.1.k", file=file, index=1) == 5
    assert records[2]["cls"] == b"\x07"


def test_rows_of_a_table(tmp_path):
    records = open_records(write_table(tmp_path / "a.parquet", 5))
    assert len(records) == 5
    assert [records[i]["caption"] for i in (4, 0, 3, 2)] == [f"caption {i}" for i in (4, 0, 3, 2)]
    found = picture_at(records[3], "image", ROOT, file="a", index=3)
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(picture(3)))))


def test_several_files_follow_each_other(tmp_path):
    for name, words in (("b", ["three"]), ("a", ["one", "two"])):
        lines = [json.dumps({"caption": word}) for word in words]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    records = open_records(f"{tmp_path}/*.jsonl")
    assert [record["caption"] for record in records] == ["one", "two", "three"]
    write_table(tmp_path / "1.parquet", 3)
    write_table(tmp_path / "2.parquet", 2)
    found = open_records(f"{tmp_path}/*.parquet")
    assert [found[i]["caption"] for i in range(len(found))] == [f"caption {i}" for i in (0, 1, 2, 0, 1)]


@pytest.mark.parametrize("mode, kind", [("L", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("RGB", "JPEG")])
def test_every_mode_becomes_rgb(mode, kind):
    found = picture_at({"image": picture(0, mode, kind)}, "image", ROOT, file="f", index=0)
    assert found.shape == (6, 8, 3)
    assert found.dtype == np.uint8


def test_pictures_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn by a quarter to look at it
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    found = picture_at({"image": "turned.jpg"}, "image", tmp_path, file="f", index=0)
    assert found.shape == (8, 6, 3)


def test_a_shard_that_was_cut_off(tmp_path):
    whole = write_tar(tmp_path / "a.tar", {f"{i}.png": picture(i) for i in range(4)})
    content = pathlib.Path(whole).read_bytes()
    for length in (4096, 1500, 700, 100):  # before its end, in a header, in a picture, in the first header
        cut = tmp_path / f"{length}.tar"
        cut.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"{length}.tar: the shard is damaged or incomplete"):
            open_records(cut)


def test_broken_files(tmp_path):
    (tmp_path / "empty.tar").write_bytes(b"\0" * 10240)
    (tmp_path / "wrong.parquet").write_bytes(b"PAR1 this is no table")
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "a.csv").write_text("x")
    write_table(tmp_path / "zero.parquet", 0)
    for name, message in (
        ("empty.tar", "the file has no records"),
        ("wrong.parquet", "not a Parquet table"),
        ("none.jsonl", "the file has no records"),
        ("zero.parquet", "the file has no records"),
        ("a.csv", "unknown kind of file '.csv'"),
        ("gone.tar", "no such file"),
        ("gone.parquet", "no such file"),
        ("*.gone", "no file matches"),
    ):
        with pytest.raises(DataError, match=message):
            open_records(tmp_path / name)


def test_broken_records(tmp_path):
    file = write_tar(tmp_path / "a.tar", {"1.json": b"{", "2.txt": b"\xff\xfe", "3.png": b"no picture"})
    records = open_records(file)
    for index, message in ((0, "record 1.*json cannot be read"), (1, "record 2.*txt cannot be read")):
        with pytest.raises(DataError, match=message):
            records[index]
    with pytest.raises(DataError, match=rf"{file}, record 3, field 'image': cannot be decoded"):
        picture_at(records[2], "image", ROOT, file=file, index="3")
    for value, message in (
        ({}, "no 'image' in"),
        ({"image": 5}, "int is no picture"),
        ({"image": {"bytes": None, "path": None}}, "NoneType is no picture"),
        ({"image": "gone.png"}, "gone.png, record 0, field 'image': no such picture"),
    ):
        with pytest.raises(DataError, match=message):
            picture_at(value, "image", tmp_path, file="f.json", index=0)
    for value, message in (({"t": "  "}, "the text is empty"), ({"t": 5}, "5 is no text"), ({}, "no 't'")):
        with pytest.raises(DataError, match=message):
            text_at(value, "t", file="f.json", index=0)
    with pytest.raises(DataError, match="no '3' in list"):
        dig({"a": [1]}, "a.3", file="f.json", index=0)
