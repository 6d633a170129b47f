# SPDX-License-Identifier: Apache-2.0
"""Queries of a link learn to say the name in front of it, if they are asked to."""

import jax.numpy as jnp
import numpy as np
import pytest

from vllm2_jax.batch import IGNORE, LINK, TEXT, Inputs
from vllm2_jax.links import mask_labels

BIG, CAT, DET, EMB, COMMA, DOG = 4, 5, 6, 7, 8, 9
#         question's link     |  answer: name, routing token, queries ...
TOKENS = [CAT, DET, EMB, EMB, EMB, BIG, CAT, DET, EMB, EMB, EMB, COMMA, DOG, DET, EMB, EMB, EMB]
ANSWER = 5


@pytest.fixture
def inputs():
    tokens = jnp.array([[TOKENS]])
    nothing = jnp.zeros_like(tokens)
    return Inputs(
        tokens=tokens,
        source=jnp.where(tokens == EMB, LINK, TEXT),
        index=nothing,
        positions=nothing,
        segments=nothing + 1,
        tiles=jnp.zeros((1, 0, 2, 2, 3), jnp.uint8),
        masks=jnp.zeros((1, 0, 2, 2), jnp.uint8),
        mask_tile=jnp.zeros((1, 0), jnp.int32),
    )


@pytest.fixture
def labels(inputs):
    of_answer = jnp.arange(len(TOKENS)) >= ANSWER
    return jnp.where(of_answer & (inputs.source != LINK), inputs.tokens, IGNORE)


def test_nothing_is_said_inside_a_link(inputs, labels):
    found = np.asarray(mask_labels(labels, inputs))[0, 0]
    assert found[ANSWER:].tolist() == [
        BIG, CAT, DET, IGNORE, IGNORE, IGNORE, COMMA, DOG, DET, IGNORE, IGNORE, IGNORE
    ]  # fmt: skip
    assert (found[:ANSWER] == IGNORE).all()


def test_queries_say_the_name_before_their_link(inputs, labels):
    """Backwards; a label is read from the column before it."""
    found = np.asarray(mask_labels(labels, inputs, names=True))[0, 0]
    assert found[ANSWER:].tolist() == [
        BIG, CAT, DET, IGNORE, CAT, BIG, COMMA, DOG, DET, IGNORE, DOG, COMMA
    ]  # fmt: skip
    assert (found[:ANSWER] == IGNORE).all()  # links of a question are only read
