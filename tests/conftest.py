# SPDX-License-Identifier: Apache-2.0
"""Eight virtual CPU devices for every test; compiled fast; must be set before jax is imported."""

import gc
import os
import resource

os.environ["JAX_PLATFORMS"] = "cpu"
# With libtpu installed, jax asks the metadata server of a cloud machine for TPUs; there is none.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# libtpu allows one process at a time; two test workers compile for a topology, neither owns a TPU.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
# Tests compile far longer than they run: without LLVM's optimisations the tiny model's initialisation
# compiles in 4 s instead of 25, its train step in 7 instead of 27. XLA's fusion emitters (jax 0.10.2) make a
# module of LLVM for every fusion: without them a painter's gradient compiles in 10 s instead of 17 to 25.
DEVICES = "--xla_force_host_platform_device_count"
os.environ["XLA_FLAGS"] = (
    f"{DEVICES}=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import jax  # noqa: E402 (reads the environment above)
import pytest  # noqa: E402

# Tracing makes many objects that live: Python's collector looks through all of them again and again, for a
# sixth of the time of the decoders' tests.
gc.freeze()
gc.set_threshold(100_000, 10, 10)

_MEMORY = 3 * 2**30  # bytes


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs pile up to several GiB a worker; no module runs those of another."""
    yield
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > _MEMORY:
        jax.clear_caches()
