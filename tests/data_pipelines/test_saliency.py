# SPDX-License-Identifier: Apache-2.0
"""Pictures and masks in two folders."""

import pathlib

import numpy as np
import pytest

from configs.mixtures import MIXTURES
from data_pipelines import DATASETS
from data_pipelines.collate import CollateSpec
from data_pipelines.errors import DataError
from data_pipelines.mixture import open_source
from launch.build import fill_root
from launch.truth import objects_of
from tests.data_pipelines import objects
from vllm2_jax.evals.objects import decode

load = DATASETS["saliency"]


@pytest.fixture
def options(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    objects.save_picture(tmp_path / "images")
    objects.save_mask(tmp_path / "masks/a.png", objects.mask("dog").astype(np.uint8) * 255)
    roots = {"image_root": str(tmp_path / "images"), "mask_root": str(tmp_path / "masks")}
    return roots | {"tile_size": objects.TILE, "decoder_size": 160}


def test_the_mask_is_the_object(options):
    example = load(**options, test=True)[0]
    assert example.turns == [
        ("human", "<image>\nCut out the salient object of this photo."),
        ("gpt", f"Here is the mask: salient object[DET]{objects.COUNTS_TEXT}."),
    ]
    objects.shows(example, 0, "dog")
    truth = objects_of(example, "grounding_dino")
    np.testing.assert_array_equal(decode(truth.masks[0]), objects.mask("dog"))
    assert truth.boxes.tolist() == [[50, 2, 74, 20]] and truth.size == (40, 80)
    named = load(**options, names=("camouflaged object",), test=True)[0]
    assert named.meta["classes"] == ["camouflaged object"] == named.meta["truth"]["labels"]


def test_training(options):
    examples = [load(**options, seed=seed)[0] for seed in range(12)]
    for example in examples:
        objects.shows(example, 0, "dog")
    assert {example.meta["classes"][0] for example in examples} == {"salient object", "foreground object"}
    assert len({example.targets["grounding_dino"]["image"].shape for example in examples}) > 4
    objects.same(load(**options, seed=3)[0], load(**options, seed=3)[0])


def test_the_tower_sees_the_whole_picture(options, tmp_path):
    objects.save_ramp(tmp_path / "images/a.png")
    objects.towers_see_all([load(**options, seed=seed)[0] for seed in range(8)])


def test_wordings_are_drawn(options, tmp_path):
    objects.draws_wordings(load, options, tmp_path, saliency="{classes}", cut_out="{link}")


def test_masks_of_ones_and_pictures_in_folders(options, tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name / "sub").mkdir()
    objects.save_picture(tmp_path / "images/sub", "b.jpg")
    objects.save_mask(tmp_path / "masks/sub/b.png", objects.mask("horse").astype(np.uint8))
    source = load(**options, test=True)
    assert [source[i].record for i in range(2)] == ["a", "sub/b"]
    assert source[1].targets["grounding_dino"]["masks"].sum() == 4 * objects.mask("horse").sum()


def test_nothing_to_find(options, tmp_path):
    objects.save_mask(tmp_path / "masks/a.png", np.zeros((40, 80), np.uint8))
    with pytest.raises(DataError, match=r"masks/a.png, record a: the mask is empty. Remedy"):
        load(**options)[0]
    example = load(**options, test=True)[0]
    assert len(example.targets["grounding_dino"]["boxes"]) == 0
    assert len(objects_of(example, "grounding_dino").labels) == 0


def test_bad_files(options, tmp_path):
    source = load(**options)
    objects.save_mask(tmp_path / "masks/a.png", np.ones((40, 81), np.uint8))
    with pytest.raises(DataError, match=r"a.png, record a: the mask is \(40, 81\).*its picture \(40, 80\)"):
        source[0]
    (tmp_path / "masks/a.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(DataError, match=r"masks/a.png, record a: cannot be decoded .*Remedy"):
        source[0]
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(DataError, match=r"masks/a.png, record a: no such mask. Remedy"):
        source[0]
    (tmp_path / "images/a.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"images/a.png, record a, field 'image_root': cannot be decoded"):
        source[0]
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(DataError, match="images: no pictures in this folder"):
        load(**options)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load(**{**options, "mask_root": str(tmp_path / "nowhere")})


def test_some_pictures_of_a_folder(tmp_path):
    """COD10K has pictures without anything hidden, and masks without a pixel for them."""
    entry = fill_root(MIXTURES["grounding"]["salient"]["datasets"]["cod10k"], str(tmp_path))
    for folder in (entry["image_root"], entry["mask_root"]):
        pathlib.Path(folder).mkdir(parents=True)
    for name in ("COD10K-CAM-1-Aquatic-3-Crab-32", "COD10K-NonCAM-1-Aquatic-3-Crab-8"):
        objects.save_picture(pathlib.Path(entry["image_root"]), f"{name}.jpg")
    source = open_source("cod10k", entry, spec=CollateSpec(0, objects.TILE, 0), seed=0)
    assert [pair.record for pair in source.pairs] == ["COD10K-CAM-1-Aquatic-3-Crab-32"]
    roots = {key: entry[key] for key in ("image_root", "mask_root")}
    with pytest.raises(DataError, match=r"Train/Image: no pictures 'CAMO-\*' in this folder"):
        load(**roots, tile_size=objects.TILE, files="CAMO-*")


def test_pictures_and_masks_in_one_folder(options, tmp_path):
    folder = str(tmp_path / "masks")
    objects.save_picture(tmp_path / "masks", "a.v2.jpg")
    objects.save_mask(tmp_path / "masks/a.v2.png", objects.mask("horse").astype(np.uint8))
    source = load(**{**options, "image_root": folder, "mask_root": folder}, test=True)
    assert len(source) == 1 and source[0].record == "a.v2"  # the mask a.png has no picture
    objects.shows(source[0], 0, "horse")


def test_masks_are_brighter_than_half(options, tmp_path):
    """Files that were once JPEGs have a dark fringe."""
    fringed = np.where(objects.mask("dog"), 200, 90).astype(np.uint8)
    objects.save_mask(tmp_path / "masks/a.png", fringed)
    objects.shows(load(**options, test=True)[0], 0, "dog")


def test_the_order_is_that_of_the_names(options, tmp_path, monkeypatch):
    for name in ("c.JPG", "b.png"):
        objects.save_picture(tmp_path / "images", name)
    found = pathlib.Path.rglob
    for order in (sorted, lambda paths: sorted(paths)[::-1]):
        monkeypatch.setattr(
            pathlib.Path, "rglob", lambda folder, names, order=order: order(found(folder, names))
        )
        assert [pair.record for pair in load(**options).pairs] == ["a", "b", "c"]
