# SPDX-License-Identifier: Apache-2.0
"""Eight virtual CPU devices for every test; must be set before jax is imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# With libtpu installed, jax asks the metadata server of a cloud machine for TPUs; there is none.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# libtpu allows one process at a time; two test workers compile for a topology, neither owns a TPU.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8".strip()
