# SPDX-License-Identifier: Apache-2.0
"""Without a model: what blind guessing scores, and which random keys sampled answers get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.example import Example
from launch import build
from launch.answer import AnswerConfig, Answerer
from launch.evaluate import most_frequent
from launch.heldout import Case
from tests.distributed.tiny import tiny_config
from vllm2_jax.llm.generate import NO_LINK, Generation


def case(kind: str, question: str, truth: str) -> Case:
    return Case("chat", kind, Example("", "", "", [("human", f"<image>\n{question}")]), truth)


def test_blind_guesses_follow_the_other_cases():
    yes = [case("size", "Is it small?", "Yes.")] * 3
    no = [case("size", "Is it big?", "No.")] * 2
    hue = [case("colour", "What hue?", truth) for truth in ("Red.", "Red.", "Blue.")]
    scores = most_frequent(
        [
            *yes,  # each is what the two others say
            *no,  # of the same question, though "Yes." is said more often
            case("size", "Is it flat?", "Yes."),  # asked once: what is said of sizes
            *hue,  # Red, Red, and Red where it is blue
            case("colour", "Which tint?", "Blue."),  # Red
            case("count", "How many?", "Two."),  # nobody else counts
        ]
    )
    assert scores == {
        "exact_match": pytest.approx(8 / 11),
        "exact_match/size": 1.0,
        "exact_match/colour": 2 / 4,
        "exact_match/count": 0.0,
        "count": 11,
    }


def test_sampled_answers_draw_anew_for_every_batch():
    made = build.build_run(tiny_config(**{"sharding.devices": "cpu:1"}))

    def keys(seed: int) -> list[bytes]:
        found = []

        def generate(model, inputs, key, sampler):
            found.append(np.asarray(jax.random.key_data(key)).tobytes())
            rows, none = jnp.zeros(2, int), jnp.zeros((2, 1), int)
            states = jnp.zeros((2, 1, 1, 1))
            return Generation(none, rows, states, none + NO_LINK, rows, rows > 0, rows == 0)

        answerer = Answerer(made, AnswerConfig(rows=2, max_new=1, seed=seed, temperature=1.0))
        answerer._generate = generate
        assert len(answerer(None, [Example("", "", "", [("human", "Why?")])] * 5)) == 5
        return found

    first = keys(0)
    assert len(first) == 3 and first == keys(0)
    assert len({*first, *keys(1)}) == 6
