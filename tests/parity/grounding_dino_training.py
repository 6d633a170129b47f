# SPDX-License-Identifier: Apache-2.0
"""A training step of the grounding decoder: denoising queries, predictions, losses, gradients of all weights.

Then the same without masks, without any object, and with one object of one class in one picture.
"""

import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.parity import Case, goldens
from tests.parity import grounding_dino as gd
from tests.parity import grounding_dino_targets as given
from vllm2_jax.batch import Links, Weighted, mean
from vllm2_jax.convert import grounding_dino as convert
from vllm2_jax.convert.rules import export
from vllm2_jax.decoders.denoising import Draws, Layout
from vllm2_jax.decoders.grounding_dino import denoising
from vllm2_jax.decoders.grounding_dino.config import CriterionConfig
from vllm2_jax.decoders.grounding_dino.costs import costs
from vllm2_jax.decoders.grounding_dino.criterion import Criterion, MaskPoints
from vllm2_jax.decoders.grounding_dino.model import GroundingDINO
from vllm2_jax.decoders.grounding_dino.outputs import Outputs, Predictions, mask_logits
from vllm2_jax.decoders.grounding_dino.targets import Truth
from vllm2_jax.ops.matching import match

# Official name of a loss -> ours, and which kind it is of.
TERMS = {"ce": "class", "bbox": "box", "giou": "giou", "mask": "mask", "dice": "dice"}
KINDS = {"labels": ("class",), "boxes": ("box", "giou"), "masks": ("mask", "dice")}

# A gradient below this share of the largest one is 0 but for rounding: biases before a norm with one channel
# a group, keys before a softmax.
NOTHING = 1e-6

NAMES = ("dn_label_prob", "dn_new_label", "dn_sign01", "dn_box")
Arrays = dict[str, np.ndarray]
Scene = tuple[Links, jax.Array, jax.Array, Truth]  # links, pixels, which of them are inside, objects


def cases(folder: pathlib.Path) -> Iterator[Case]:
    model, inputs, data = gd.build(folder), given.load(folder), goldens.arrays(folder, "train")
    variants = goldens.arrays(folder, "train_variants")
    step = Step(model)
    rows = list(range(len(inputs["pixel_values"])))
    scene = (
        gd.links(inputs),
        gd.pixels(inputs),
        jnp.asarray(inputs["pixel_mask"]),
        given.truth(inputs, rows),
    )
    layout = denoising.lay_out(scene[3], model.config)
    draws = given.noise(
        tuple(data[f"rand/{name}"] for name in NAMES), layout, model.config.criterion.label_noise
    )
    outputs = jax.jit(step.outputs)(scene, draws)
    yield from denoising_queries(model, scene, layout, draws, data)
    yield from predictions(outputs, layout, data)

    weights = data["grad_stats/names"]
    names = given.set_names(model.config.decoder_layers)
    query = assignment(outputs, scene[3], model.config.criterion)
    points = given.mask_points(data, names, query, scene[3].valid, layout)
    for kind, terms in {"all": sum(KINDS.values(), ()), **KINDS}.items():
        found, gradients = step(scene, draws, points, terms)
        if kind == "all":
            yield from losses(model.config.criterion, data["loss/names"], data["loss/values"], found)
            yield "total", found["total"], data["loss/total"]
            yield from _whole_gradients(data, gradients)
            yield from gradient_norms("", weights, data["grad_stats/l2"], data["grad_stats/dot"], gradients)
        else:
            prefix = f"by_type/{kind}/"
            yield f"{kind} total", found["total"], data[f"{prefix}weighted_sum"]
            yield from gradient_norms(
                kind, weights, data[f"{prefix}grad_l2"], data[f"{prefix}grad_dot"], gradients
            )
            want = data[f"{prefix}grad_text_query_l2_dot"]
            yield f"{kind} grad of the links", gd.stats(gradients["text_query"]), want

    everything = sum(KINDS.values(), ())
    for name, changed in {
        "nomask": {"mask_valid": jnp.zeros_like(scene[3].mask_valid)},
        "empty": {"valid": jnp.zeros_like(scene[3].valid), "mask_valid": jnp.zeros_like(scene[3].valid)},
    }.items():
        found, gradients = step((*scene[:3], scene[3].replace(**changed)), draws, points, everything)
        yield from _variant(name, model, variants, data, found, gradients)
    scene, draws, points = _one_object(model, inputs, variants)
    found, gradients = step(scene, draws, points, everything)
    yield from _variant("one", model, variants, data, found, gradients)


class Step:
    """Losses and gradients of the official names; compiled once for each shape.

    Args:
      encoded: takes the place of `GroundingDINO.encode`: what an encoder made of the scene once.
    """

    def __init__(self, model: GroundingDINO, encoded: Callable[[GroundingDINO], tuple] | None = None):
        self.graph, self.state = nnx.split(model)
        self.config, self.encoded = model.config, encoded
        self.run = jax.jit(jax.value_and_grad(self.total, argnums=(0, 1, 2), has_aux=True))

    def outputs(self, scene: Scene, draws: Draws) -> Outputs:
        """All predictions."""
        return self._look(self.state, scene, draws)[0]

    def __call__(
        self, scene: Scene, draws: Draws, points: MaskPoints, kinds: tuple[str, ...]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Every term, and `total` of the wanted kinds; gradients of that, weights by their official names."""
        links, pixels, *rest = scene
        on = {name: jnp.float32(name in kinds) for name in sum(KINDS.values(), ())}
        (total, (terms, self.seen)), (weights, states, image) = self.run(
            self.state, links.states, pixels, (links.valid, *rest), draws, points, on
        )
        found = {name: np.asarray(mean(value)) for name, value in terms.items()}
        named = export(weights, convert.table(self.config))
        named |= {"text_query": np.asarray(states), "pixel_values": gd.channels_first(image)}
        return found | {"total": np.asarray(total)}, named

    def total(
        self, state, states, pixels, rest, draws: Draws, points: MaskPoints, on: dict[str, jax.Array]
    ) -> tuple[jax.Array, tuple[dict[str, Weighted], Outputs]]:
        """The sum of the wanted terms; all terms, and the predictions they are of."""
        valid, inside, truth = rest
        outputs, layout = self._look(state, (Links(states, valid), pixels, inside, truth), draws)
        terms = Criterion(self.config.criterion, truth)(outputs, points, layout)
        return sum(on[name.split("_")[0]] * mean(value) for name, value in terms.items()), (terms, outputs)

    def _look(self, state, scene: Scene, draws: Draws) -> tuple[Outputs, Layout]:
        links, pixels, inside, truth = scene
        model = nnx.merge(self.graph, state)
        # The official gradient also reaches the zeros where a row has no class. Ours stops there: nobody
        # reads it, for they come from no link.
        encode = model.class_encoder
        model.class_encoder = lambda links: encode(links.replace(valid=jnp.ones_like(links.valid)))
        if self.encoded is not None:
            model.encode = lambda *_, **__: self.encoded(model)
        layout = denoising.lay_out(truth, self.config)
        noise = denoising.disturb(layout, draws, truth, model.class_encoder(links), self.config)
        return model.look(links, pixels, inside, dn=noise), layout


def assignment(outputs: Outputs, truth: Truth, config: CriterionConfig) -> np.ndarray:
    """Query of every object for every matched set."""

    def one(found: Predictions) -> jax.Array:
        return match(costs(found.logits, found.boxes, truth, config), truth.valid)

    sets = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), outputs.encoder, outputs.layers)
    return np.asarray(jax.jit(jax.vmap(one))(sets))


def losses(
    criterion: CriterionConfig, names: np.ndarray, values: np.ndarray, found: dict[str, np.ndarray]
) -> Iterator[Case]:
    """Every term, with its coefficient."""
    for name, value in zip(names, values, strict=True):
        _, kind, *rest = str(name).split("_", 2)
        term = TERMS.get(kind, kind)  # the official code says "class" where it has no denoising queries
        weight = getattr(criterion, f"{term}_weight")
        yield f"loss {name}", found["_".join([term, *rest])], np.float32(weight * value)
    yield "number of losses", np.array(len(found.keys() - {"total"})), np.array(len(names))


def denoising_queries(
    model: GroundingDINO, scene: Scene, layout: Layout, draws: Draws, data: Arrays
) -> Iterator[Case]:
    """The denoising queries, and who sees whom with them in front."""
    links, *_, truth = scene
    noise = jax.jit(
        lambda links: denoising.disturb(layout, draws, truth, model.class_encoder(links), model.config)
    )(links)
    slots, count = layout.live.shape[1], int(data["dn/single_padding"]) * int(data["dn/dn_num"])
    rows = len(layout.live)
    yield "live slots", np.asarray(layout.live.sum(1)), np.full(rows, count)
    yield "groups", np.asarray(layout.groups), np.full(rows, int(data["dn/dn_num"]))
    yield "denoising content", np.asarray(noise.content[:, :count]), data["dn/input_query_label"]
    logits = data["dn/input_query_bbox"].astype(np.float64)
    yield (
        "denoising boxes",
        np.asarray(noise.boxes[:, :count]),
        (1 / (1 + np.exp(-logits))).astype(np.float32),
    )
    keep = np.r_[:count, slots : noise.mask.shape[1]]
    blocked = ~np.asarray(noise.mask)[:, keep][:, :, keep]
    yield "who sees whom", blocked, np.broadcast_to(data["dn/attn_mask"], blocked.shape)


def predictions(outputs: Outputs, layout: Layout, data: Arrays) -> Iterator[Case]:
    """Every set of predictions."""
    layers = len(outputs.layers.logits)
    live = int(layout.live[0].sum())
    sets = [outputs.encoder]
    sets += [jax.tree.map(lambda x: x[i], outputs.layers) for i in range(layers)]  # noqa: B023
    sets += [jax.tree.map(lambda x: x[i, :, :live], outputs.denoising) for i in range(layers)]  # noqa: B023
    for name, found in zip(given.set_names(layers), sets, strict=True):
        yield from gd.logits(f"{name} logits", np.asarray(found.logits), data[f"pred/{name}/logits"])
        yield f"{name} boxes", np.asarray(found.boxes), data[f"pred/{name}/boxes"]
        if f"pred/{name}/mask_stats" not in data:
            continue
        masks = np.asarray(mask_logits(found.masks, outputs.mask_features))
        yield f"{name} masks", gd.stats(masks), data[f"pred/{name}/mask_stats"]
        if f"pred/{name}/masks_query0" in data:
            yield f"{name} masks of query 0", masks[:, 0], data[f"pred/{name}/masks_query0"]


def _whole_gradients(data: Arrays, found: Arrays) -> Iterator[Case]:
    """Gradients that are recorded as they are."""
    for key, want in data.items():
        if key.startswith("grad/"):
            yield f"grad {key[5:]}", found[key[5:]], want
    yield "grad of the pixels", gd.stats(found["pixel_values"]), data["grad_stats_pixel_values"]


def gradient_norms(
    title: str, names: np.ndarray, norms: np.ndarray, products: np.ndarray, found: Arrays
) -> Iterator[Case]:
    """Norm and product with the probe of every weight's gradient, in units of its norm."""
    floor = NOTHING * norms.max()
    for name, norm, product in zip(names, norms, products, strict=True):
        got = gd.stats(found[str(name)])
        if norm <= floor:
            yield f"no {title} gradient of {name}", np.array(got[0] <= 10 * floor), np.array(True)
        else:
            yield f"{title} grad of {name}", got / norm, np.array([norm, product]) / norm


def _variant(
    name: str, model: GroundingDINO, variants: Arrays, data: Arrays, found: Arrays, gradients: Arrays
) -> Iterator[Case]:
    """Losses, total and gradients of another batch."""
    mine = {key.removeprefix(f"{name}/"): x for key, x in variants.items() if key.startswith(f"{name}/")}
    for title, got, want in losses(model.config.criterion, mine["loss_names"], mine["loss_values"], found):
        yield f"{name} {title}", got, want
    yield f"{name} total", found["total"], mine["total"]
    yield from gradient_norms(name, data["grad_stats/names"], mine["grad_l2"], mine["grad_dot"], gradients)
    yield f"{name} grad of the links", gd.stats(gradients["text_query"]), mine["grad_text_query_stats"]


def _one_object(model: GroundingDINO, inputs: Arrays, variants: Arrays) -> tuple[Scene, Draws, MaskPoints]:
    """One picture without its padding, one class and one object."""
    i, place = int(variants["one/image"]), int(variants["one/class_index"])
    h, w = variants["one/size"]
    pixels = inputs["pixel_values"][i : i + 1, :, :h, :w]
    alone = {
        "pixel_values": pixels,
        "pixel_mask": pixels[:, 0] != 0,
        "text_query": inputs["text_query"][i : i + 1, place : place + 1],
        "text_query_masks": inputs["text_query_masks"][i : i + 1, place : place + 1],
        "target0/class_labels": np.zeros(1, np.int64),
        "target0/boxes": inputs[f"target{i}/boxes"][:1],
        "target0/masks": inputs[f"target{i}/masks"][:1],
    }
    scene = (gd.links(alone), gd.pixels(alone), jnp.asarray(alone["pixel_mask"]), given.truth(alone, [0]))
    drawn = [variants[key] for key in sorted(variants) if key.startswith("one/rand/")]
    layout = denoising.lay_out(scene[3], model.config)
    draws = given.noise(tuple(drawn[:4]), layout, model.config.criterion.label_noise)
    # The official sets run from the last layer over the earlier ones to the cells; ours the other way round.
    layers = model.config.decoder_layers
    sets = list(zip(drawn[4::2], drawn[5::2], strict=True))
    order = [layers, *range(1, layers), 0]
    matched = [sets[j] for j in order]
    noisy = [sets[1 + layers + j] for j in (*range(1, layers), 0)]
    query = np.zeros((1 + layers, 1, scene[3].valid.shape[1]), int)
    return (
        scene,
        draws,
        MaskPoints(
            given.matched_points(matched, query, np.asarray(scene[3].valid)),
            given.denoising_points(noisy, layout),
        ),
    )
