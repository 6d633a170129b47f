# SPDX-License-Identifier: Apache-2.0
"""The released 7B at full size, in and out: written with random values, converted, exported and compared.

    python -m tests.full_size --folder FOLDER        # needs 45 GB of disk; what it writes is removed again
    python -m tests.full_size --folder FOLDER --keep # but the converted model, which launch.predict can load

The export streams into the comparison, which takes each wanted value from the seed and not from the file that
was converted. Prints time and peak resident memory of each step; exits with 1 if a tensor differs in a bit or
the memory passes its bound.
"""

import argparse
import json
import pathlib
import shutil
import sys

import numpy as np

from launch.cost import peak_memory, timed
from launch.released import run_config
from tests import fake_checkpoint
from vllm2_jax.convert.checkpoint import free_bytes
from vllm2_jax.train.exporting import Export
from vllm2_jax.train.released import open_released, reopen
from vllm2_jax.train.streaming import write_orbax

DISK = 45 * 10**9
MEMORY = 6 * 2**30


def compare(export: Export, listed: fake_checkpoint.Listed) -> list[str]:
    """What differs between the exported tensors and those that were converted."""
    wrong, missing = [], set(listed)
    for entry, got in export.tensors():
        if entry.name not in missing:
            wrong.append(f"{entry.name} is exported twice or not in the list")
            continue
        missing.remove(entry.name)
        want = fake_checkpoint.value(entry.name, *listed[entry.name])
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            wrong.append(f"{entry.name}: {got.shape} {got.dtype}, not {want.shape} {want.dtype}")
        elif not np.array_equal(got.reshape(-1).view(np.uint8), want.reshape(-1).view(np.uint8)):
            wrong.append(f"{entry.name} differs")
    return wrong + [f"{name} is not exported" for name in sorted(missing)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.full_size", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="must not exist")
    parser.add_argument("--small", action="store_true", help="small widths: a try of the program itself")
    parser.add_argument("--keep", action="store_true", help="leave FOLDER/converted if all is equal")
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} exists; give a folder that does not")
    if not args.small and free_bytes(args.folder.absolute()) < DISK:
        free = free_bytes(args.folder.absolute()) / 1e9
        parser.error(f"the disk of {args.folder} has {free:.0f} GB free, {DISK / 1e9:.0f} are needed")
    listed = fake_checkpoint.small() if args.small else fake_checkpoint.released_7b()
    config = fake_checkpoint.CONFIG_SMALL if args.small else fake_checkpoint.CONFIG_7B
    official, ours = args.folder / "official", args.folder / "converted"
    wrong = ["not compared"]
    try:
        with timed("write"):
            fake_checkpoint.write(official, listed, config)
        with timed("open and check"):
            released = open_released(official)
        with timed(f"convert {released.size / 1e9:.2f} G parameters"):
            asked = run_config(released.config, tokenizer=str(ours.absolute()))
            write_orbax(released, ours, run_config=json.loads(asked.to_json_best_effort()))
        size = sum(file.stat().st_size for file in args.folder.rglob("*") if file.is_file())
        print(f"disk: {size / 1e9:.1f} GB")
        with timed(f"export and compare {len(listed):,} tensors"):
            wrong = compare(Export.plan(ours, reopen(ours)), listed)
    finally:
        shutil.rmtree(official if args.keep and not wrong else args.folder, ignore_errors=True)
    print("\n".join(wrong) or f"all {len(listed):,} tensors are equal bit by bit")
    if too_much := peak_memory() > MEMORY:
        print(f"peak memory {peak_memory() / 2**30:.2f} GiB is more than {MEMORY / 2**30:.0f} GiB")
    return 1 if wrong or too_much else 0


if __name__ == "__main__":
    sys.exit(main())
