# SPDX-License-Identifier: Apache-2.0
"""GKE through xpk, Google's tool for TPU jobs on Kubernetes: a cluster of slices, and jobs that queue for it.

The commands and flags are those of xpk (repository AI-Hypercomputer/xpk, read in November 2026). GKE tells
each container of its slice and of the others: `jax.distributed.initialize()` needs no arguments.
"""

import shlex
from collections.abc import Sequence

from launch.pods import DATA, GRACE, Command, Pod, build_image, environment

_STORAGE = "vllm2-data"
_AGAIN = 42  # exit code of a run that saved and wants to go on


def create(pod: Pod) -> list[Command]:
    """A cluster with the slices, and the data bucket attached to it."""
    capacity = pod.capacity_flags("--reservation") or ["--on-demand"]
    made = [
        _xpk(
            pod,
            "cluster create",
            f"--tpu-type={pod.slice().name}",
            f"--num-slices={pod.slices}",
            *capacity,
            *(["--enable-gcsfuse-csi-driver"] if pod.data else []),
        )
    ]
    if pod.data:
        made.append(
            _xpk(
                pod,
                f"storage attach {_STORAGE}",
                "--type=gcsfuse",
                f"--bucket={pod.data_bucket()}",
                f"--mount-point={DATA}",
                "--readonly=true",
                "--auto-mount=false",
                "--size=1",  # Kubernetes wants a number; a bucket has no size
            )
        )
    return made


def status(pod: Pod) -> list[Command]:
    """The jobs of the cluster and their states."""
    return [_xpk(pod, "workload list")]


def setup(pod: Pod, *, build: bool) -> list[Command]:
    """The container in its registry; the nodes fetch it when a job starts."""
    if not build:
        raise ValueError("setup --no-build: with xpk, building the container is all there is to set up")
    return build_image(pod)


def run(pod: Pod, flags: Sequence[str]) -> list[Command]:
    """Queues the job. It is started again after a host is lost, up to `restarts` times."""
    # xpk passes SIGTERM to its child; exec makes that Python instead of a shell.
    # A drained host asks for a stop: with 0 the job would count as done.
    again = f"--stopped_code={_AGAIN}"
    command = shlex.join(["exec", "python", "-m", "launch.train", again, *flags])
    return [
        _xpk(
            pod,
            "workload create",
            f"--workload={pod.job()}",
            f"--tpu-type={pod.slice().name}",
            f"--num-slices={pod.slices}",
            f"--docker-image={pod.need('image')}",
            f"--max-restarts={pod.restarts}",
            # 1: peers are gone; 4: no data or no disk. 2 and 3 (wrong config, loss not finite) would recur.
            f"--restart-on-exit-codes=1,4,{_AGAIN}",
            f"--termination-grace-period-seconds={GRACE}",
            *(f"--env={name}={value}" for name, value in environment(pod).items()),
            *([f"--storage={_STORAGE}"] if pod.data else []),
            f"--command={command}",
        )
    ]


def logs(pod: Pod, *, everywhere: bool) -> list[Command]:
    """Follows process 0, or all, each line behind the name of its pod."""
    labels = [f"xpk.google.com/workload={pod.job()}"]
    if not everywhere:
        labels += ["jobset.sigs.k8s.io/job-index=0", "batch.kubernetes.io/job-completion-index=0"]
    region = pod.need("zone").rpartition("-")[0]  # xpk makes regional clusters
    return [
        [
            *("gcloud", "container", "clusters", "get-credentials", pod.need("cluster")),
            f"--project={pod.need('project')}",
            f"--region={region}",
        ],
        [
            *("kubectl", "logs", "--follow", "--prefix", "--tail=200"),
            "--max-log-requests=1024",
            f"--selector={','.join(labels)}",
        ],
    ]


def stop(pod: Pod, *, delete: bool) -> list[Command]:
    """Deletes the job, whose processes get SIGTERM and save; then the cluster, if wanted."""
    made = [_xpk(pod, "workload delete", f"--workload={pod.job()}")]
    if delete:
        made.append(_xpk(pod, "cluster delete"))
    return made


def _xpk(pod: Pod, verb: str, *flags: str) -> Command:
    return [
        "xpk",
        *verb.split(),
        f"--cluster={pod.need('cluster')}",
        f"--project={pod.need('project')}",
        f"--zone={pod.need('zone')}",
        *flags,
    ]
