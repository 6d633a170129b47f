# SPDX-License-Identifier: Apache-2.0
"""Compares the models with golden tensors of the official code.

    python -m tests.parity --component core --goldens ../shared/goldens/core

Prints the error of every tensor and exits with 1 if any is past its tolerance. Works on any folder of the
same layout: sizes and seeds are read from its config.json.
"""

import argparse
import pathlib
import re
import sys

import jax

from tests.parity import COMPONENTS, compare, weights


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--component", required=True, choices=sorted(COMPONENTS))
    parser.add_argument("--goldens", required=True, type=pathlib.Path, help="folder with the golden files")
    parser.add_argument("--only", default="", help="regex: only parts whose name matches (e.g. 'full')")
    parser.add_argument(
        "--through-orbax", action="store_true", help="weights take the way of a converted checkpoint"
    )
    args = parser.parse_args()
    weights.through_orbax = args.through_orbax
    if not (args.goldens / "GOLDENS.md").exists() and not (args.goldens / "config.json").exists():
        parser.error(f"{args.goldens} has neither GOLDENS.md nor config.json; it is not a golden folder")

    failed = count = 0
    with jax.default_matmul_precision("highest"):
        for part, cases in COMPONENTS[args.component].items():
            if not re.search(args.only, part):
                continue
            for name, got, want in cases(args.goldens):
                result = compare(f"{part}: {name}", got, want)
                print(result, flush=True)
                failed += not result.ok
                count += 1
    if count == 0:
        print(f"no tensor was compared: --only={args.only!r} matches no part", file=sys.stderr)
        return 1
    print(f"{count - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
