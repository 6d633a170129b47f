# SPDX-License-Identifier: Apache-2.0
"""What a program says while it works."""

from absl import logging


def hush_orbax() -> None:
    """Orbax tells at length what it does; only its warnings stay."""
    logging.get_absl_handler().addFilter(lambda line: line.levelno > 20 or "orbax" not in line.pathname)
