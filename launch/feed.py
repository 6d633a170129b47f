# SPDX-License-Identifier: Apache-2.0
"""Does the input keep up with the chips? What one host makes of a config's data, and what its share of a step
needs.

    python -m launch.feed --config configs/stage1_tune_7b.py --config.data.root=DATA --workers 4,16,48 \\
        --report docs/compile/stage1_tune_v5p_64.json
    python -m launch.feed --config configs/base.py:7b --config.data.length=4096 --hosts 8 --step_seconds 1.5

To be run on a machine like the hosts, on which nothing else runs: the numbers hold for its cores and disks.
The predicted step comes from a report of `launch.compile` (its best case, which asks for most) or is given.
`configs/base.py` has synthetic pictures, which cost their rendering as real ones cost their decoding.
"""

import dataclasses
import json
import os
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from data_pipelines.errors import DataError
from data_pipelines.measure import measure
from data_pipelines.mixture import make_dataset
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch import exits
from launch.build import Config, collate_spec, fill_root, model_config

CHIPS_PER_HOST = 4  # of all slices of more than one host, see `launch.accelerators`


@dataclasses.dataclass(frozen=True)
class Need:
    """What the chips ask for: the predicted seconds of a step, and the hosts that share its batch."""

    seconds: float
    hosts: int


def main(argv: list[str]) -> None:
    """Measures and prints; exits with 1 if no number of workers is enough, with 2 for a wrong config."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; config keys are set as --config.key=value")
    given = flags.FLAGS
    try:
        need = needed(given.report, given.step_seconds, given.hosts)
        best = max(feed(given.config, need, int(workers), given.batches) for workers in given.workers)
    except (DataError, ValueError, FileNotFoundError) as error:
        print(f"launch.feed: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if best >= 1 else 1)


def needed(report: str, seconds: float, hosts: int) -> Need:
    """Step time and hosts, as given or else of a report.

    Raises:
      ValueError: neither, or a report without times.
      FileNotFoundError: no such report.
    """
    if report:
        found = json.loads(pathlib.Path(report).read_text(encoding="utf-8"))
        if not (found.get("times") and found.get("chip")):
            raise ValueError(f"{report} predicts no step: {found.get('problem') or 'it has no chip'}")
        chips = found["devices"] // found["chip"]["devices"]
        seconds, hosts = seconds or found["times"]["best"], hosts or max(1, chips // CHIPS_PER_HOST)
    if seconds <= 0 or hosts <= 0:
        raise ValueError("give --report FILE.json of launch.compile, or --step_seconds and --hosts")
    return Need(seconds, hosts)


def feed(config: Config, need: Need, workers: int, batches: int) -> float:
    """Measures the share of one host, prints a line, returns how many times the need it delivers.

    Raises:
      ValueError: groups that do not split over the hosts.
      DataError: data that cannot be opened or read.
    """
    groups, rest = divmod(config.data.groups, need.hosts)
    if rest or not groups:
        raise ValueError(
            f"{config.data.groups} groups do not split over {need.hosts} hosts: make --config.data.groups a "
            "multiple of that, or set --hosts"
        )
    tokenizer = load_tokenizer(config.data.tokenizer or TINY_TOKENIZER)
    dataset = make_dataset(
        fill_root(config.data.mixture.to_dict(), config.data.root),
        tokenizer=tokenizer,
        spec=collate_spec(config, model_config(config, tokenizer)),
        groups=config.data.groups,
        mine=range(groups),
        seed=config.seed,
        workers=workers,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    # What was made ahead before the clock runs is used up first: from then on each batch has to be made.
    ahead = (config.data.prefetch + 1) * max(1, workers)
    rates = measure(dataset, batches=batches, warmup=ahead)
    times = rates["batches/s"] * need.seconds
    print(
        f"{workers:3} workers x {config.data.threads} threads on {os.cpu_count()} cores: "
        f"{rates['examples/s']:8.1f} examples/s {rates['MB/s']:8.1f} MB/s; "
        f"needed {rates['examples/s'] / times:8.1f} examples/s for {groups} groups in {need.seconds:.2f} s: "
        f"{times:.2f} times the need",
        flush=True,
    )
    return times


def define_flags() -> None:
    """Not when imported: other programs have flags of the same names."""
    config_flags.DEFINE_config_file("config", None, "Config of the run.")
    flags.DEFINE_list("workers", ["0"], "Numbers of worker processes to try; 0: none.")
    flags.DEFINE_integer("batches", 20, "Batches of a host to time, for each number.", lower_bound=1)
    flags.DEFINE_string("report", "", "JSON of launch.compile: gives the step time and the hosts.")
    flags.DEFINE_float("step_seconds", 0.0, "Time of a step, instead of a report's.")
    flags.DEFINE_integer("hosts", 0, "Hosts that share the groups, instead of a report's.")


if __name__ == "__main__":
    define_flags()
    flags.mark_flag_as_required("config")
    exits.run(main)
