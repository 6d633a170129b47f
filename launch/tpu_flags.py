# SPDX-License-Identifier: Apache-2.0
"""Options of the TPU compiler that this project compiles with, in reports and on a pod alike.

libtpu reads them from the environment when it is loaded, which is after jax was imported.
"""

import os

VARIABLE = "LIBTPU_INIT_ARGS"
FLAGS = (
    # Never a ring of permutes beside parts of a product instead of a gather before it ("windowed einsum"):
    # each turn reads and writes the whole sum, 4 TiB in the stage-2 step (docs/compile/README.md).
    "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",
)


def set_flags() -> None:
    """Puts ours before those that are set, which win."""
    os.environ[VARIABLE] = " ".join([*FLAGS, *own()])


def own() -> list[str]:
    """Those that are set and are not ours."""
    return [flag for flag in os.environ.get(VARIABLE, "").split() if flag not in FLAGS]
