# SPDX-License-Identifier: Apache-2.0
"""What a program ends with: who reads the code, a scheduler or a person, knows whether to start it again."""

import pathlib
import sys
from collections.abc import Callable

from absl import app, flags

from data_pipelines.errors import DataError, StalledError
from launch.values import check_values
from vllm2_jax.train.checkpoint import SaveError
from vllm2_jax.train.fate import PeerError
from vllm2_jax.train.monitor import NotFiniteError

# The first that fits. 1 is everything else.
_CODES = (
    ((StalledError, SaveError), 4),
    ((NotFiniteError,), 3),
    ((DataError, ValueError, FileNotFoundError), 2),
)


def exit_code(error: BaseException) -> int:
    """2: config or data; 3: the loss is not finite; 4: storage; 1: else. That of the process that failed."""
    if isinstance(error, PeerError):
        return error.code
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), 1)


def run(main: Callable[[list[str]], None]) -> None:
    """`absl.app.run`; flags or a config that cannot be end the program with 2 and one line that says why."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if "config" in flags.FLAGS and (config := flags.FLAGS["config"].value) is not None:
                config.keys()  # of a file that could not be loaded, any question says why
                check_values(config)
            return rest
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
            said: object = error
            while isinstance(said, KeyError | AttributeError) and said.args:
                said = said.args[0]  # their own texts are quoted, once for each layer
            if (key := str(said).strip("'")).isidentifier():
                said = f"the config has no key {key!r}; configs/base.py has all keys"
            print(f"launch.{pathlib.Path(argv[0]).stem}: {said}", file=sys.stderr)
            sys.exit(2)

    app.run(main, flags_parser=parse)
