# SPDX-License-Identifier: Apache-2.0
"""The released checkpoint -> weights for `--config.init.weights`, and back.

    python -m launch.convert --from VisionLLMv2 --to converted
    python -m launch.convert --from converted --to official --export
    python -m launch.convert --from runs/tune --like converted --to official --export   # after training

Reads and writes one leaf at a time; a target is there complete or not at all. Exits with 2 and a list of all
misfits if checkpoint and model do not fit.
"""

import json
import pathlib
import sys

from absl import app, flags
from tqdm import tqdm

from launch import exits
from launch.logs import hush_orbax
from launch.released import run_config
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.train.exporting import Export, write_official
from vllm2_jax.train.released import open_released, reopen, without_adapters
from vllm2_jax.train.streaming import write_orbax

_FROM = flags.DEFINE_string("from", None, "Folder to read; that of a run may be gs://...", required=True)
_TO = flags.DEFINE_string("to", None, "Folder to write; must not exist.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of all leaves; default: as stored.")
_COMPONENTS = flags.DEFINE_list("components", [], "Only these, such as vision,llm,decoders/unipose.")
_MERGE = flags.DEFINE_bool("merge-lora", False, "Adds adapters to the kernels they belong to.")
_EXPORT = flags.DEFINE_bool("export", False, "From our folder, or the workdir of a run, to official names.")
_LIKE = flags.DEFINE_string("like", None, "Exporting a run: the converted folder it began with.")


def main(argv: list[str]) -> None:
    """Reads the flags and converts."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    hush_orbax()
    if _LIKE.value and not _EXPORT.value:
        raise app.UsageError("--like belongs to --export")
    if _EXPORT.value and (_DTYPE.value or _COMPONENTS.value):
        raise app.UsageError("--dtype and --components belong to conversion; an export writes what is there")
    source, target = _FROM.value, _TO.value
    with tqdm(unit=" parameters", unit_scale=True) as bar:
        try:
            if _EXPORT.value:
                released = reopen(_LIKE.value or source)
                export = Export.plan(source, released, merge_lora=_MERGE.value)
                bar.reset(released.size)
                write_official(export, target, report=bar.update)
            else:
                released = open_released(source, _COMPONENTS.value)
                bar.reset(released.size)
                result = without_adapters(released) if _MERGE.value else released
                config = run_config(result.config, tokenizer=str(pathlib.Path(target).absolute()))
                write_orbax(
                    released,
                    target,
                    dtype=_DTYPE.value,
                    merge_lora=_MERGE.value,
                    report=bar.update,
                    run_config=json.loads(config.to_json_best_effort()),
                )
        except (ConversionError, FileNotFoundError) as error:
            bar.close()
            print(f"launch.convert: {error}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    exits.run(main)
