# SPDX-License-Identifier: Apache-2.0
"""VisionLLM v2: images -> tokens -> links -> language model -> decoders. The file to read first.

    tiles -- tower -----------+-- bridge ---------- image tokens --+
                              +-- region encoder -- regions -------+
    token ids -- embeddings ----------------------- text ----------+-- one select -- language model -- text
    query banks ----------------------------------- links ---------+                      |
                                                                        decoders <-- links +

All tasks of a batch run through the language model together, layer by layer, those with equally long rows as
one array; each decoder then reads the hidden states at its own rows' link columns, so its gradient reaches
the query banks and the language model.
"""

import dataclasses
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vllm2_jax import links
from vllm2_jax.batch import Batch, Inputs, TaskRows, Weighted, add, flatten_groups, merge, split_rows
from vllm2_jax.decoders import DECODERS
from vllm2_jax.llm.llama import Llama, LlamaConfig
from vllm2_jax.llm.loss import total_and_rows
from vllm2_jax.nn.axes import constrain
from vllm2_jax.tokens import QueryCounts
from vllm2_jax.vision import VisionConfig, build_vision
from vllm2_jax.vision.bridge import Bridge, BridgeConfig
from vllm2_jax.vision.pixels import normalize
from vllm2_jax.vision.regions import RegionConfig, RegionEncoder


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of the whole model.

    Attributes:
      vision: the tower; its class says which one.
      vision_layer: which of the tower's hidden states feeds the bridge: -2 with CLIP, -1 with InternViT.
      bridge, regions, llm: the other parts of the trunk.
      queries: queries of a link.
      query_std: size of fresh ones. Beside a language model from nothing 1 drowns what is in front of a link.
      named_links: queries learn to say the name in front of them, see `links.mask_labels`.
      decoders: decoder name -> its own config; absent ones are not built.
      dtype: precision of products and activations.
      remat: what the backward pass of "vision" and "llm" keeps; keys of `nn.stack.REMAT`.
      attention: "xla" or "splash".
      unroll: layers of the language model in one turn of the loop over them, see `nn.stack.run`.
      loss_chunk: columns a row whose logits exist at once in the language-model loss, with a label;
        0 for the logits of all columns.
    """

    vision: VisionConfig
    bridge: BridgeConfig
    regions: RegionConfig
    llm: LlamaConfig
    vision_layer: int = -2
    queries: QueryCounts = dataclasses.field(default_factory=QueryCounts)
    query_std: float = 1.0
    named_links: bool = False
    decoders: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "bfloat16"
    remat: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"vision": "none", "llm": "none"})
    attention: str = "xla"
    unroll: int = 1
    loss_chunk: int = 0

    @property
    def tokens_per_tile(self) -> int:
        """Columns that one tile fills."""
        return self.bridge.tokens_per_tile(self.vision.tokens)


# The region encoder sums the outputs of the tower's last three layers, whatever feeds the bridge.
REGION_LAYERS = (-3, -2, -1)


class VisionLLMv2(nnx.Module):
    """The whole model. `losses` trains, `predict` asks a decoder, `embed` and `llm` serve generation."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.config = config
        self.vision = build_vision(config.vision, dtype=dtype, remat=config.remat["vision"], rngs=rngs)
        self.bridge = Bridge(config.bridge, dtype=dtype, rngs=rngs)
        self.regions = RegionEncoder(config.regions, dtype=dtype, rngs=rngs)
        self.queries = links.QueryBanks(config.queries, config.llm.width, std=config.query_std, rngs=rngs)
        self.llm = Llama(
            config.llm,
            dtype=dtype,
            remat=config.remat["llm"],
            attention=config.attention,
            unroll=config.unroll,
            rngs=rngs,
        )
        self.decoders = nnx.Dict(
            {
                name: DECODERS[name](part, link_width=config.llm.width, rngs=rngs)
                for name, part in config.decoders.items()
            }
        )

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> "VisionLLMv2":
        """A model with its weights; see `vllm2_jax.pretrained.from_pretrained`, which this calls."""
        # Found when called: loading stands above the model, which must not import it.
        return importlib.import_module("vllm2_jax.pretrained").from_pretrained(source, **options)

    def see(
        self, inputs: Inputs, *, key: jax.Array | None = None
    ) -> tuple[Float[Array, "G I D"], Float[Array, "G N D"]]:
        """Image tokens and region vectors of each group.

        The official code runs the tower without gradient. Here the freeze table does that: parameters that
        are not differentiated, and all that only they lead to, cost nothing in the backward pass.

        Args:
          inputs: `tiles`, `masks` and `mask_tile` are read.
          key: draws the sampled form of region pooling; None takes the closed form.
        """
        groups, tiles = inputs.tiles.shape[:2]
        width, dtype = self.config.llm.width, jnp.dtype(self.config.dtype)
        if tiles == 0:
            return jnp.zeros((groups, 0, width), dtype), jnp.zeros((groups, 0, width), dtype)
        pixels = constrain(normalize(inputs.tiles, dtype), "batch", None, None, None, None)
        count = inputs.masks.shape[1]
        # Without regions the tower stops at the layer that the bridge reads.
        layers = (self.config.vision_layer, *(REGION_LAYERS if count else ()))
        states = self.vision.hidden_states(flatten_groups(pixels), layers)
        first, *last = (state[:, 1:] for state in states)  # the class token is dropped everywhere
        image_tokens = self.bridge(first).reshape(groups, -1, width)

        if count == 0:
            return image_tokens, jnp.zeros((groups, 0, width), dtype)

        def of_region(x: Array) -> Array:
            x = x.reshape(groups, tiles, *x.shape[1:])
            index = inputs.mask_tile.reshape(groups, count, *[1] * (x.ndim - 2))
            return flatten_groups(jnp.take_along_axis(x, index, axis=1))

        vectors = self.regions(
            of_region(flatten_groups(pixels)),
            flatten_groups(inputs.masks),
            tuple(of_region(state) for state in last),
            key=key,
        )
        return image_tokens, vectors.reshape(groups, count, width)

    def embed(self, inputs: Inputs, *, key: jax.Array | None = None) -> Float[Array, "G R L D"]:
        """The language model's input: every column filled from its source."""
        images, regions = self.see(inputs, key=key)
        text = self.llm.embed_tokens(flatten_groups(inputs.tokens))
        text = text.reshape(*inputs.tokens.shape, -1)
        return links.embed(inputs, text, images, regions, self.queries.table(jnp.float32))

    def hidden(self, inputs: Inputs, *, key: jax.Array | None = None) -> Float[Array, "G R L D"]:
        """Hidden states after the last norm: what the head and the decoders read.

        Args:
          inputs: the rows of one or more tasks (`batch.merge`).
          key: randomness of training (adapter dropout, sampled regions); None is evaluation.
        """
        return self.hidden_by_length([inputs], key=key)[0]

    def hidden_by_length(
        self, inputs: Sequence[Inputs], *, key: jax.Array | None = None
    ) -> list[Float[Array, "G _ _ D"]]:
        """As `hidden` for rows of several lengths, which meet every layer together."""
        keys = (None, None) if key is None else jax.random.split(key)
        embedded, rows = [], []
        for number, one in enumerate(inputs):
            own = jax.random.fold_in(keys[0], number) if keys[0] is not None and number else keys[0]
            x = self.embed(one, key=own)
            embedded.append(x)
            rows.append((flatten_groups(x), flatten_groups(one.positions), flatten_groups(one.segments)))
        found = self.llm.together(rows, key=keys[1])
        return [hidden.reshape(x.shape) for hidden, x in zip(found, embedded, strict=True)]

    def losses(
        self, batch: Batch, *, key: jax.Array | None = None
    ) -> tuple[dict[str, Weighted], dict[str, Weighted]]:
        """Loss terms of all tasks.

        Args:
          batch: task name -> its rows.
          key: as in `hidden`; decoders get one folded from it, or from a fixed one: their losses are always
            those of training.

        Returns:
          The terms whose means add up to the training loss (`lm`, `<decoder>/<term>`; official: plain sum,
          weight 1), and values to watch (`<task>/lm`, `<task>/accuracy` of the next token).
        """
        rows: dict[str, jax.Array] = {}
        terms: dict[str, Weighted] = {"lm": (jnp.zeros(()), jnp.zeros(()))}
        watch: dict[str, Weighted] = {}
        lengths = sorted({task.labels.shape[-1] for task in batch.values()})
        by_length = [
            {name: task for name, task in batch.items() if task.labels.shape[-1] == length}
            for length in lengths
        ]
        inputs = [
            merge([task.inputs for task in tasks.values()], self.config.tokens_per_tile)
            for tasks in by_length
        ]
        hidden = self.hidden_by_length(inputs, key=key)
        for tasks, states in zip(by_length, hidden, strict=True):
            found, loss, sums = self._language_losses(tasks, states)
            rows |= found
            terms["lm"] = add(terms["lm"], loss)
            watch |= sums
        for name in sorted({name for task in batch.values() for name in task.targets}):
            terms |= self.decoder_losses(name, rows, batch, key=key)
        return terms, watch

    def _language_losses(
        self, batch: Batch, hidden: jax.Array
    ) -> tuple[dict[str, jax.Array], Weighted, dict[str, Weighted]]:
        """Of tasks of equally long rows: hidden states by task, the loss, values to watch."""
        tasks = list(batch)
        mask = functools.partial(links.mask_labels, names=self.config.named_links)
        labels = [mask(batch[task].labels, batch[task].inputs) for task in tasks]
        # All tasks at once: the head is gathered, and its gradient scattered, once.
        total, (loss, correct, weight) = total_and_rows(
            flatten_groups(hidden),
            flatten_groups(jnp.concatenate(labels, axis=1)),
            self.llm.head,
            chunk=self.config.loss_chunk,
        )
        watch: dict[str, Weighted] = {}
        counts = [x.shape[1] for x in labels]
        parts = [split_rows(x.reshape(hidden.shape[:2]), counts) for x in (loss, correct, weight)]
        for task, *sums in zip(tasks, *parts, strict=True):
            mine, right, number = (x.sum() for x in sums)
            watch[f"{task}/lm"], watch[f"{task}/accuracy"] = (mine, number), (right, number)
        return dict(zip(tasks, split_rows(hidden, counts), strict=True)), (total, weight.sum()), watch

    def decoder_losses(
        self, decoder: str, hidden: Mapping[str, jax.Array], batch: Batch, *, key: jax.Array | None = None
    ) -> dict[str, Weighted]:
        """Loss terms `<decoder>/<term>` of one decoder over the tasks that call it.

        Args:
          decoder: its name.
          hidden: task name -> hidden states of its rows, [G, r, L, D].
          batch: the rows; tasks without targets for this decoder are not read.
          key: as in `losses`.
        """
        self._need(decoder)
        mine = [task for task in batch if decoder in batch[task].targets]
        found = [(links.read(hidden[task], batch[task]), batch[task].targets[decoder]) for task in mine]
        states, targets = jax.tree.map(_join_rows, *found)
        # By name, not by place: a decoder draws the same numbers whatever else is in the batch.
        own = jax.random.fold_in(jax.random.key(0) if key is None else key, sum(decoder.encode()))
        terms = self.decoders[decoder].loss(states, targets, key=own)
        return {f"{decoder}/{term}": value for term, value in terms.items()}

    def predict(self, rows: TaskRows, decoder: str, *, key: jax.Array | None = None) -> Any:
        """What a decoder makes of one task's rows whose answers are there already (teacher forcing).

        The official evaluations of all decoders that see do this: the answer lists every class.

        Args:
          rows: of one task; of its `targets[decoder]` only what is no ground truth is read.
          decoder: its name.
          key: for decoders that draw at random.

        Returns:
          What the decoder's own `predict` returns, with all rows in one leading axis.
        """
        self._need(decoder)
        states = links.read(self.hidden(rows.inputs), rows)
        found, inputs = jax.tree.map(_join_rows, (states, rows.targets[decoder]))
        key = jax.random.key(0) if key is None else key
        return self.decoders[decoder].predict(found, inputs, key=key)

    def _need(self, decoder: str) -> None:
        if decoder not in self.decoders:
            raise ValueError(
                f"the batch has targets for the decoder {decoder!r}, which this model was built without; "
                f"add it to the model's decoders (it has {sorted(self.decoders) or 'none'})"
            )


def _join_rows(*tasks: Array) -> Array:
    """Rows of several tasks for one decoder, `[G, r, ...] -> [G * sum(r), ...]`, group by group.

    Tasks may have room for different numbers of links and objects: zeros, which no `valid` counts, fill up.
    """
    room = [max(sizes) for sizes in zip(*(x.shape[2:] for x in tasks), strict=True)]

    def fill(x: Array) -> Array:
        more = [(0, most - size) for most, size in zip(room, x.shape[2:], strict=True)]
        return jnp.pad(x, [(0, 0), (0, 0), *more])

    rows = flatten_groups(jnp.concatenate([fill(x) for x in tasks], axis=1))
    return constrain(rows, "batch", *[None] * (rows.ndim - 1))
