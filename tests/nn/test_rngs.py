# SPDX-License-Identifier: Apache-2.0
"""Keys are those of nnx.Rngs, and drawing one costs the same however much has been traced before it."""

import jax
import numpy as np
from flax import nnx

from vllm2_jax.nn.rngs import Rngs


def test_the_same_keys_as_nnx():
    ours, theirs = Rngs(7), nnx.Rngs(7)
    for draw in (lambda r: r.params(), lambda r: r.dropout(), lambda r: r()):  # all share one counter
        np.testing.assert_array_equal(jax.random.key_data(draw(ours)), jax.random.key_data(draw(theirs)))
    key = jax.random.key(3)
    np.testing.assert_array_equal(
        jax.random.key_data(Rngs(key).params()), jax.random.key_data(nnx.Rngs(key).params())
    )


def test_a_layer_of_nnx_takes_them():
    ours, theirs = (nnx.Linear(4, 5, rngs=rngs) for rngs in (Rngs(1), nnx.Rngs(1)))
    np.testing.assert_array_equal(ours.kernel[...], theirs.kernel[...])


def test_keys_are_traced_without_a_counter():
    def draw(count):
        rngs = Rngs(0)
        return [rngs.params() for _ in range(count)]

    few, many = (len(jax.make_jaxpr(lambda count=count: draw(count))().eqns) for count in (10, 20))
    assert many - few <= 20  # fold_in alone, where a counter adds as many equations again
