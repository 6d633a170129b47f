# SPDX-License-Identifier: Apache-2.0
"""A training job on Cloud TPU slices: make them, install, start the same command on all hosts, read, stop.

    python -m launch.pod create --settings pod.toml            # asks for the slices
    python -m launch.pod status --settings pod.toml            # are they there?
    python -m launch.pod setup  --settings pod.toml            # builds the container, puts it on every host
    python -m launch.pod run    --settings pod.toml -- --config configs/stage1_tune_7b.py
    python -m launch.pod logs   --settings pod.toml            # follows the first host
    python -m launch.pod stop   --settings pod.toml            # saves first; --delete gives back the slices

Every command takes --dry-run, which prints what would run and runs nothing. The settings are the fields of
`launch.pods.Pod`, in a TOML file or as flags, which win: --accelerator v5p-128 --slices 2. Backends: "queued"
(Cloud TPU queued resources, through gcloud) and "xpk" (GKE). docs/pods.md walks through both.
"""

import argparse
import dataclasses
import pathlib
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from typing import Any, get_type_hints

from launch import pod_gke, pod_queued
from launch.pods import Command, Pod

ROOT = pathlib.Path(__file__).parents[1]
BACKENDS = {"queued": pod_queued, "xpk": pod_gke}
VERBS = {
    "create": "ask for the slices (queued) or make a cluster with them (xpk)",
    "status": "say how far that is, and what runs",
    "setup": "build and push the container, and get every host ready",
    "run": "start the job on all hosts; flags of launch.train stand after --",
    "logs": "follow the output of the first host",
    "stop": "ask the job to save and end",
}


def parser() -> argparse.ArgumentParser:
    """The command line: a flag for each field of `Pod`."""
    made = argparse.ArgumentParser(
        prog="python -m launch.pod",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = get_type_hints(Pod)
    verbs = made.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        sub.add_argument("--settings", type=pathlib.Path, help="TOML file with the settings")
        sub.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
        for field in dataclasses.fields(Pod):
            sub.add_argument(f"--{field.name}", type=kinds[field.name], help=field.metadata["help"])
        if verb == "setup":
            sub.add_argument("--no-build", action="store_true", help="the container was pushed before")
        if verb == "run":
            sub.add_argument("flags", nargs="*", metavar="-- FLAGS", help="of launch.train")
        if verb == "logs":
            sub.add_argument("--all", action="store_true", help="of all hosts")
        if verb == "stop":
            sub.add_argument("--delete", action="store_true", help="also give back the slices")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs or prints the commands of one verb; 2 if settings or tools are missing, 1 if a command fails."""
    args = parser().parse_args(argv)
    try:
        pod = read_pod(args)
        plan = commands(pod, args)
        if not args.dry_run:
            check_tools(plan)
    except (ValueError, OSError) as error:
        print(f"launch.pod: {error}", file=sys.stderr)
        return 2
    for command in plan:
        print(show(command), flush=True)
        if not args.dry_run:
            code = subprocess.run(command, check=False).returncode
            if code:
                print(f"launch.pod: {command[0]} failed with exit code {code}", file=sys.stderr)
                return 1
    return 0


def read_pod(args: argparse.Namespace) -> Pod:
    """The settings of the file, and over them those of the command line.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is not TOML, an unknown setting, one of the wrong type, or one that is missing.
    """
    values: dict[str, Any] = {}
    if args.settings:
        try:
            values = tomllib.loads(args.settings.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{args.settings}: not TOML: {error}") from error
    kinds = get_type_hints(Pod)
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"{args.settings}: unknown setting {name!r}; there are {', '.join(kinds)}")
        if type(value) is not kinds[name]:
            raise ValueError(f"{args.settings}: {name} has to be of type {kinds[name].__name__}")
    values |= {name: getattr(args, name) for name in kinds if getattr(args, name) is not None}
    pod = Pod(**values)
    if pod.backend not in BACKENDS:
        raise ValueError(f"unknown backend {pod.backend!r}; choose one of {', '.join(BACKENDS)}")
    return pod


def commands(pod: Pod, args: argparse.Namespace) -> list[Command]:
    """What a verb runs, one after the other.

    Raises:
      ValueError: a setting that the verb needs is missing or impossible.
    """
    backend = BACKENDS[pod.backend]
    if args.verb == "setup":
        return backend.setup(pod, build=not args.no_build)
    if args.verb == "run":
        return backend.run(pod, train_flags(pod, args.flags))
    if args.verb == "logs":
        return backend.logs(pod, everywhere=args.all)
    if args.verb == "stop":
        return backend.stop(pod, delete=args.delete)
    return getattr(backend, args.verb)(pod)


def train_flags(pod: Pod, flags: Sequence[str]) -> list[str]:
    """The flags of `launch.train`: what was given, one process a host, and a workdir in the bucket.

    Raises:
      ValueError: no config or one that is not there, no bucket for the workdir, or a flag of ours among them.
    """
    if "--dry-run" in flags:
        raise ValueError("run: --dry-run stands among the flags of launch.train; put it in front of --")
    if not any(flag == "--config" or flag.startswith("--config=") for flag in flags):
        raise ValueError(
            "run: give the flags of launch.train after --, as in: run ... -- --config configs/X.py"
        )
    # The container has the files of this tree, and no folder of its own outlives it.
    for name, value in _values(flags):
        file = value.partition(":")[0]
        if name == "--config" and not (ROOT / file).is_file():
            raise ValueError(f"run: --config={value}: there is no file {ROOT / file}")
        if name == "--workdir" and not value.startswith("gs://"):
            raise ValueError(f"run: --workdir={value} is lost with the container; give a folder in a bucket")
    made = [*flags, "--multihost"]
    if not any(flag.split("=")[0] == "--workdir" for flag in flags):
        made.append(f"--workdir={pod.folder()}/runs/{pod.job()}")
    return made


def _values(flags: Sequence[str]) -> list[tuple[str, str]]:
    """Name and value of each flag, in either way of writing it."""
    following = [*flags[1:], ""]
    return [
        (name, value if equals else after)
        for (name, equals, value), after in zip((f.partition("=") for f in flags), following, strict=True)
    ]


def check_tools(plan: Sequence[Command]) -> None:
    """Raises FileNotFoundError that names the programs that are not installed."""
    missing = sorted({command[0] for command in plan if not shutil.which(command[0])})
    if missing:
        raise FileNotFoundError(
            f"not installed, or not on PATH: {', '.join(missing)}; --dry-run shows the commands without them"
        )


def show(command: Command) -> str:
    """The command as a shell takes it, each flag on a line of its own."""
    lines = [shlex.quote(command[0])]
    for word in command[1:]:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return " \\\n    ".join(lines)


if __name__ == "__main__":
    sys.exit(main())
