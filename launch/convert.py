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
from vllm2_jax.train.exporting import Export, write_official
from vllm2_jax.train.paths import in_bucket, place
from vllm2_jax.train.released import NAMES, open_released, reopen, without_adapters
from vllm2_jax.train.streaming import write_orbax

_FROM = flags.DEFINE_string("from", None, "Folder to read; that of a run may be gs://...", required=True)
_TO = flags.DEFINE_string("to", None, "Folder to write; must not exist.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of all leaves; default: as stored.")
_COMPONENTS = flags.DEFINE_list("components", [], "Only these, such as vision,llm,decoders/unipose.")
_MERGE = flags.DEFINE_bool("merge-lora", False, "Adds adapters to the kernels they belong to.")
_EXPORT = flags.DEFINE_bool("export", False, "From our folder, or the workdir of a run, to official names.")
_LIKE = flags.DEFINE_string("like", None, "Exporting a run: the converted folder it began with.")


def check_flags(source: str, target: str, like: str | None, *, export: bool) -> None:
    """Raises ValueError that names the flag whose folder is of another kind than is wanted."""
    if not source or not target:
        raise ValueError("give the folder to read as --from=FOLDER, the one to write as --to=FOLDER")
    if in_bucket(target):
        raise ValueError(f"--to={target} is in a bucket: give a folder on this machine")
    if place(target).exists():
        raise ValueError(f"--to={target} exists; give another folder or remove it")
    if like and not export:
        raise ValueError("--like is for an export: add --export, or leave --like out")
    for flag, folder in (("--from", source), ("--like", like)):
        if folder and not in_bucket(folder) and not place(folder).is_dir():
            raise ValueError(f"{flag}={folder}: there is no such folder")
    run = in_bucket(source) or (place(source) / "checkpoints").is_dir()
    if not export:
        if run:
            raise ValueError(
                f"--from={source} is a run, a conversion reads the released checkpoint from a folder on this "
                "machine; to write a run in official names, add --export --like=CONVERTED"
            )
        if (place(source) / NAMES).exists():
            raise ValueError(f"--from={source} is converted already; to write official names, add --export")
        return
    if run and not like:
        raise ValueError(
            f"--from={source} is a run: give the converted folder it began with as --like=FOLDER"
        )
    flag, folder = ("--like", like) if like else ("--from", source)
    if not in_bucket(folder) and not (place(folder) / NAMES).exists():
        official = (place(folder) / "config.json").exists()
        raise ValueError(
            f"{flag}={folder} has no {NAMES}: give a folder that launch.convert wrote"
            + ("; this one has official names, and is converted without --export" if official else "")
        )


def main(argv: list[str]) -> None:
    """Reads the flags and converts."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    hush_orbax()
    source, target = _FROM.value, _TO.value
    with tqdm(unit=" parameters", unit_scale=True) as bar:
        try:
            check_flags(source, target, _LIKE.value, export=_EXPORT.value)
            if _EXPORT.value and (_DTYPE.value or _COMPONENTS.value):
                raise ValueError(
                    "--dtype and --components are for conversion; an export writes what is there"
                )
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
        except (ValueError, FileNotFoundError) as error:
            bar.close()
            print(f"launch.convert: {error}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    exits.run(main)
