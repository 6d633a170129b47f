# SPDX-License-Identifier: Apache-2.0
"""The released 7B at full size, in and out: written with random values, converted, exported and compared.

    python -m tests.full_size --folder FOLDER        # needs 45 GB of disk; what it writes is removed again

The export streams into the comparison, which takes each wanted value from the seed and not from the file that
was converted. Prints time and peak resident memory of each step; exits with 1 if a tensor differs in a bit or
the memory passes its bound.
"""

import argparse
import pathlib
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tests import fake_checkpoint
from vllm2_jax.convert.checkpoint import free_bytes
from vllm2_jax.train.exporting import Export
from vllm2_jax.train.released import open_released, reopen
from vllm2_jax.train.streaming import write_orbax

DISK = 45 * 10**9
MEMORY = 6 * 2**30


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Prints what a step took."""
    start = time.monotonic()
    yield
    print(f"{step}: {time.monotonic() - start:.0f} s, peak memory {peak() / 2**30:.2f} GiB", flush=True)


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
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} exists; give a folder that does not")
    if not args.small and free_bytes(args.folder.absolute()) < DISK:
        free = free_bytes(args.folder.absolute()) / 1e9
        parser.error(f"the disk of {args.folder} has {free:.0f} GB free, {DISK / 1e9:.0f} are needed")
    listed = fake_checkpoint.small() if args.small else fake_checkpoint.released_7b()
    config = fake_checkpoint.CONFIG_SMALL if args.small else fake_checkpoint.CONFIG_7B
    official, ours = args.folder / "official", args.folder / "converted"
    try:
        with timed("write"):
            fake_checkpoint.write(official, listed, config)
        with timed("open and check"):
            released = open_released(official)
        with timed(f"convert {released.size / 1e9:.2f} G parameters"):
            write_orbax(released, ours)
        size = sum(file.stat().st_size for file in args.folder.rglob("*") if file.is_file())
        print(f"disk: {size / 1e9:.1f} GB")
        with timed(f"export and compare {len(listed):,} tensors"):
            wrong = compare(Export.plan(ours, reopen(ours)), listed)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    print("\n".join(wrong) or f"all {len(listed):,} tensors are equal bit by bit")
    if peak() > MEMORY:
        print(f"peak memory {peak() / 2**30:.2f} GiB is more than {MEMORY / 2**30:.0f} GiB")
    return 1 if wrong or peak() > MEMORY else 0


if __name__ == "__main__":
    sys.exit(main())
