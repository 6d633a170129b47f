# SPDX-License-Identifier: Apache-2.0
"""Evaluations by name: each takes answers and truths and returns named values."""

from vllm2_jax.evals.exact_match import exact_match

EVALS = {"exact_match": exact_match}
