# SPDX-License-Identifier: Apache-2.0
"""One layer over the queries: Grounding DINO's, but that queries look at each other in pieces."""

from flax import struct
from jaxtyping import Array, Float

from vllm2_jax.decoders.grounding_dino.decoder import DecoderLayer, Scene
from vllm2_jax.decoders.unipose.sight import Sight


@struct.dataclass
class Crowd(Scene):
    """What queries look at, each other included; `mask` is not used."""

    sight: Sight


class Layer(DecoderLayer):
    """Queries look at each other, at the classes and at the cells around their boxes."""

    def among_queries(
        self, query: Float[Array, "B T W"], x: Float[Array, "B T W"], scene: Scene
    ) -> Float[Array, "B T W"]:
        """As the scene's `sight` says."""
        if not isinstance(scene, Crowd):
            raise TypeError(f"the pose decoder's layers look at a Crowd, not at a {type(scene).__name__}")
        return scene.sight(self.to_queries, query, x)
