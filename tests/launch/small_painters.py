# SPDX-License-Identifier: Apache-2.0
"""A run with both decoders that paint, small enough for tests."""

import ml_collections

from tests.distributed.tiny import tiny_config

DECODER = {
    "unet": {
        "widths": (8,),
        "attends": (True,),
        "depth": 1,
        "heads": 2,
        "context": 16,
        "groups": 4,
    },
    "vae": {"widths": (8, 8), "depth": 1, "groups": 4},
    "text": {
        "vocab": 666,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "mlp": 16,
        "length": 20,
        "start": 1,
        "end": 2,
    },
    "mapper": {"heads": 2, "mlp": 16},
    "sampling": {"sampler": "ddim", "steps": 2, "max_steps": 3},
    "size": 16,
}
DECODERS = {
    "stable_diffusion": DECODER,
    "instruct_pix2pix": {**DECODER, "unet": {**DECODER["unet"], "channels": 8}},
}
TASKS = {"t2i": ("stable_diffusion", "gen", 0), "edit": ("instruct_pix2pix", "edit", 1)}
METRICS = {"t2i": ("agreement",), "edit": ("edits",)}


def tasks(split: str) -> dict:
    """Generation and editing of synthetic scenes."""
    scene = {"level": "one", "decoder_size": 16, "split": split}
    return {
        name: {
            "tiles": tiles,
            "decoder": decoder,
            "links": {link: 1},
            "capacities": {"size": 16, "caption": 20},
            "datasets": {"synthetic": {"task": name, **scene}},
        }
        for name, (decoder, link, tiles) in TASKS.items()
    }


def config() -> ml_collections.ConfigDict:
    """Generation and editing are trained and held out."""
    made = tiny_config(
        **{
            "steps": 1,
            "log_every": 1,
            "sharding.strategy": "single",
            "data.groups": 2,
            "data.length": 128,
            "eval.examples": 3,
            "eval.pictures": 2,
        }
    )
    with made.unlocked():
        made.model.decoders = DECODERS
        made.model.queries.generation = 5
        made.named_links = True
        made.data.mixture = {name: {"rows": 1, **task} for name, task in tasks("train").items()}
        heldout = {name: {"metrics": METRICS[name], **task} for name, task in tasks("heldout").items()}
        made.eval.tasks = ml_collections.ConfigDict(heldout)
        # The less is trained, the less is compiled: what generation freezes, and most of the rest.
        frozen = r"/(vae|text)/|stable_diffusion/unet/|^(vision|bridge|regions)/|^llm/(layers|embed|head)"
        made.optimizer.groups = ((frozen, None), (r".", 1.0))
    return made
