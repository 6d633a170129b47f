# SPDX-License-Identifier: Apache-2.0
"""The released checkpoint -> weights for `--config.init.weights`, and back.

    python -m launch.convert --from VisionLLMv2 --to converted
    python -m launch.convert --from converted --to official --export

Reads and writes one leaf at a time; a target is there complete or not at all. Exits with 2 and a list of all
misfits if checkpoint and model do not fit.
"""

import math
import pathlib
import sys

from absl import app, flags
from tqdm import tqdm

from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.train.released import Released, open_released, reopen
from vllm2_jax.train.streaming import write_official, write_orbax

_FROM = flags.DEFINE_string("from", None, "Folder to read.", required=True)
_TO = flags.DEFINE_string("to", None, "Folder to write; must not exist.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of all leaves; default: as stored.")
_COMPONENTS = flags.DEFINE_list("components", [], "Only these, such as vision,llm,decoders/unipose.")
_EXPORT = flags.DEFINE_bool("export", False, "From our folder to official names.")


def main(argv: list[str]) -> None:
    """Reads the flags and converts."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    source, target = pathlib.Path(_FROM.value), pathlib.Path(_TO.value)
    try:
        if _EXPORT.value:
            released = reopen(source)
            with _bar(released) as bar:
                write_official(source, released.plan, target, report=bar.update)
        else:
            released = open_released(source, _COMPONENTS.value)
            with _bar(released) as bar:
                write_orbax(released, target, dtype=_DTYPE.value, report=bar.update)
    except ConversionError as error:
        print(f"launch.convert: {error}", file=sys.stderr)
        sys.exit(2)


def _bar(released: Released) -> tqdm:
    total = sum(math.prod(shape) for shape in released.plan.leaves.values())
    return tqdm(total=total, unit=" parameters", unit_scale=True)


if __name__ == "__main__":
    app.run(main)
