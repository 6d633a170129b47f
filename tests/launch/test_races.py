# SPDX-License-Identifier: Apache-2.0
"""Our sides of the decoders' races at tiny sizes; how fast is for `python -m launch.benchmark` to say."""

import argparse
import dataclasses
import importlib.util
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from launch import benchmark, race, race_diffusion, race_grounding_dino, race_unipose
from tests.decoders.unipose import tiny
from vllm2_jax.decoders.diffusion.config import UNetConfig
from vllm2_jax.decoders.grounding_dino.config import CriterionConfig, GroundingDINOConfig
from vllm2_jax.decoders.grounding_dino.model import GroundingDINO
from vllm2_jax.decoders.unipose.model import UniPose
from vllm2_jax.nn.layers import LayerNorm
from vllm2_jax.nn.rngs import Rngs

UNET = UNetConfig(widths=(8, 16), attends=(True, False), depth=1, heads=2, context=6, groups=4)
DETECTOR = GroundingDINOConfig(
    backbone=dataclasses.replace(tiny.CONFIG.backbone, stages=(0, 1, 2, 3), drop="attention"),
    width=32,
    queries=12,
    encoder_layers=1,
    encoder_heads=4,
    encoder_mlp=16,
    encoder_points=2,
    decoder_layers=1,
    decoder_heads=4,
    decoder_mlp=16,
    decoder_points=2,
    mask_width=8,
    criterion=CriterionConfig(points=16, denoising=4),
    dtype="float32",
)


@pytest.mark.slow
def test_painting_returns_what_is_compared():
    work = race_diffusion.make_work(UNET, 32)
    ours = race_diffusion.Ours(UNET, work)
    noise = ours.forward()
    assert noise.shape == work.latents.shape and bool(jnp.isfinite(noise).all())
    gradient = ours.frozen()
    assert gradient.shape == work.text.shape and float(jnp.abs(gradient).max()) > 1e-12
    np.testing.assert_allclose(ours.train(), gradient, rtol=1e-4, atol=1e-6 * float(jnp.abs(gradient).max()))
    race_diffusion.same("forward", noise, np.moveaxis(np.asarray(noise), -1, 1))
    with pytest.raises(AssertionError, match="forward"):
        race_diffusion.same("forward", noise, np.moveaxis(np.asarray(noise), -1, 1) * 1.1)


@pytest.mark.slow
def test_detection_trains_with_and_without_masks(monkeypatch):
    for name, value in {"LINK_WIDTH": 6, "CLASSES": 8, "OBJECTS": 2, "ROOM": 3}.items():
        monkeypatch.setattr(race_grounding_dino, name, value)
    links, targets = race_grounding_dino.make_rows(64)
    assert targets["valid"].sum() == 2 and targets["labels"].max() < 3
    model = race.filled(lambda: GroundingDINO(DETECTOR, link_width=6, rngs=Rngs(0)))
    logits, boxes = race_grounding_dino.forward(model, links, targets)()
    assert logits.shape == (1, 12, 8) and boxes.shape == (1, 12, 4)
    boxes_only = race_grounding_dino.training(model, links, targets)()
    whole = race_grounding_dino.training(model, links, targets, whole=True)()
    assert 0 < boxes_only < whole < np.inf


@pytest.mark.slow
def test_poses_are_found_and_trained(monkeypatch):
    for name, value in {"LINK_WIDTH": 6, "CLASSES": 2, "KEYPOINTS": 3, "OBJECTS": 2, "ROOM": 3}.items():
        monkeypatch.setattr(race_unipose, name, value)
    links, targets = race_unipose.make_rows(64)
    config = dataclasses.replace(
        tiny.CONFIG, criterion=dataclasses.replace(tiny.CONFIG.criterion, denoising=0)
    )
    model = race.filled(lambda: UniPose(config, link_width=6, rngs=Rngs(0)))
    poses = race_unipose.inference(model, links, targets)()
    assert poses.keypoints.shape[2:] == (3, 2)
    assert 0 < race_unipose.training(model, links, targets)() < np.inf


def test_filled_has_the_shapes_of_what_is_made():
    def make():
        return LayerNorm(8, eps=1e-5, rngs=Rngs(0))

    norm = race.filled(make)
    assert norm.scale.shape == norm.bias.shape == (8,) and race.parameters(norm) == 16
    assert float(norm.scale[...].min()) == 1 and 0 < float(jnp.abs(norm.bias[...]).max()) < 0.1


def test_a_picture_fills_its_square_and_has_objects():
    for made, places in (
        (race_grounding_dino, race_grounding_dino.CLASSES),
        (race_unipose, race_unipose.CLASSES + race_unipose.KEYPOINTS),
    ):
        links, targets = made.make_rows(224)
        assert links.states.shape == (1, places, made.LINK_QUERIES, made.LINK_WIDTH)
        assert targets["image"].shape == (1, 224, 224, 3) and (targets["size"] == 224).all()
        assert targets["valid"].sum() == made.OBJECTS < made.ROOM == targets["boxes"].shape[1]
        assert targets["labels"].max() < made.CLASSES and targets["boxes"].min() > 0


@pytest.mark.parametrize("name", ["grounding_dino", "unipose", "diffusion", "deformable"])
def test_missing_peer_is_named(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs torch: pip install -e '\.\[benchmark\]'"):
        benchmark.BENCHMARKS[name](argparse.Namespace(pixels=0, devices=1, rounds=1))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: race_diffusion.make_work(UNET, 24), "--pixels 24: has to be a multiple of 16"),
        (lambda: race_grounding_dino.make_rows(100), "--pixels 100: has to be a multiple of 32"),
        (lambda: race_unipose.make_rows(-32), "--pixels -32: has to be a multiple of 32"),
    ],
)
def test_odd_sizes_are_named(rows, message):
    with pytest.raises(SystemExit, match=message):
        rows()


def test_help_names_all_benchmarks(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"launch.benchmark {name}" in text for name in benchmark.BENCHMARKS)
