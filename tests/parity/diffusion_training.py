# SPDX-License-Identifier: Apache-2.0
"""Training losses of both decoders, with and without dropped conditions, and all gradients.

The committed part has a recorded prediction in place of the UNet: of the gradients it has those of rows which
lost their text, and get theirs from the caption alone.
"""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.parity import Case, goldens
from tests.parity.diffusion import build, links, nchw, nhwc, whole
from vllm2_jax.convert import diffusion as convert
from vllm2_jax.convert.rules import export
from vllm2_jax.decoders.diffusion.painter import Draws, Painter
from vllm2_jax.decoders.diffusion.targets import Targets


def cases(folder: pathlib.Path) -> Iterator[Case]:
    for name, edits in (
        ("train_sd_cfg", False),
        ("train_sd_nocfg", False),
        ("train_ip2p_cfg", True),
        ("train_ip2p_nocfg", True),
    ):
        if not (folder / f"{name}.npz").exists():
            continue
        data = goldens.arrays(folder, name)
        painter = build(folder, edits=edits, drop_rate=float(data["cfg_drop_rate"]))
        for case, got, want in losses(folder, painter, data, edits=edits):
            yield f"{name}: {case}", got, want


def losses(
    folder: pathlib.Path, painter: Painter, data: dict[str, np.ndarray], *, edits: bool
) -> Iterator[Case]:
    """The terms for the recorded draws, what the UNet was given and said, and the gradients of the total."""
    draws = Draws(
        posterior=nhwc(data["posterior_eps"]),
        noise=nhwc(data["noise"]),
        time=jnp.asarray(data["timesteps"]),
        drop=jnp.asarray(data["random_p"]),
    )
    targets = Targets(
        image=nhwc(data["output_images"]),
        input=nhwc(data["input_images"]) if edits else None,
        caption=jnp.asarray(data["caption_ids"].astype(np.int32)),
    )

    complete = whole(folder)

    def total(painter, hidden):
        if not complete:
            painter = nnx.merge(*nnx.split(painter))
            painter.unet = lambda *_: nhwc(data["model_pred"])
        terms = painter.noise_losses(links(folder, data, hidden, edits=edits), targets, draws)
        means = {name: value / weight for name, (value, weight) in terms.items()}
        return sum(means.values()), (means, seen(painter, hidden))

    def seen(painter, hidden):
        states, _ = painter.text_states(links(folder, data, hidden, edits=edits))
        x = painter.noisy(painter.latents(targets, draws), draws)
        if edits:
            x = jnp.concatenate([x, painter.dropped_source(targets, draws)], axis=-1)
        context = painter.context(states, draws)
        predicted = painter.unet(x, draws.time, context) if complete else None
        return x, context, predicted, painter.moments(targets.image, None)

    hidden = jnp.asarray(data["hidden_states"])
    with jax.default_matmul_precision("highest"):
        trained = (0, 1) if complete else (1,)
        run = jax.jit(jax.value_and_grad(total, argnums=trained, has_aux=True, allow_int=True))
        (loss, (terms, found)), (*of_painter, of_hidden) = run(painter, hidden)
    x, context, predicted, moments = found
    yield "loss", np.asarray(loss), data["loss"]
    yield "noise loss", np.asarray(terms["noise"]), data["image_loss"]
    weight = painter.config.caption_weight
    yield "caption loss", np.asarray(terms["caption"]) / weight, data["caption_loss"]
    yield "input of the UNet", nchw(x), data["unet_in"]
    yield "text states for the UNet", np.asarray(context), data["unet_context"]
    mean, logvar = np.split(nchw(moments), 2, axis=1)
    yield "posterior mean", mean, data["posterior_mean"]
    yield "posterior log variance", logvar, data["posterior_logvar"]

    if not complete:
        lost = data["random_p"] < 2 * painter.config.drop_rate
        yield "grad of the hidden states", np.asarray(of_hidden)[lost], data["grad:hidden_states"][lost]
        return
    yield "predicted noise", nchw(predicted), data["model_pred"]
    yield "grad of the hidden states", np.asarray(of_hidden), data["grad:hidden_states"]
    found = export(of_painter[0], convert.table(painter.config))
    for key in [key for key in data if key.startswith("grad:") and key != "grad:hidden_states"]:
        yield key, found[key.removeprefix("grad:")], data[key]
    names = [str(name) for name in data["grad_norm_names"]]
    norms = np.array([np.linalg.norm(found[name]) for name in names], np.float32)
    yield "grad norms of all trained parameters", norms, data["grad_norms"].astype(np.float32)
