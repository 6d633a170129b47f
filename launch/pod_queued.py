# SPDX-License-Identifier: Apache-2.0
"""Cloud TPU queued resources: virtual machines that wait in a queue until there are chips.

The commands and flags are those of `gcloud compute tpus queued-resources` (reference read in November 2026).
The job runs in a container because the machines' own Python is older than ours. The machines describe their
slice, and with several slices the others, in their metadata, where `jax.distributed.initialize()` finds it.
"""

import shlex
from collections.abc import Sequence

from launch.pods import DATA, GRACE, Command, Pod, build_image, environment, login

_MOUNT = "/mnt/vllm2_data"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # to read and write buckets


def create(pod: Pod) -> list[Command]:
    """Queues one request for all slices: they come together or not at all."""
    accelerator = pod.slice()
    capacity = pod.capacity_flags("--reservation")
    if pod.slices == 1:
        nodes = [f"--node-id={pod.job()}"]
    else:
        nodes = [f"--node-count={pod.slices}", f"--node-prefix={pod.job()}"]
    return [
        _gcloud(
            pod,
            "create",
            f"--accelerator-type={accelerator.name}",
            f"--runtime-version={pod.runtime or accelerator.runtime}",
            *nodes,
            f"--scopes={_SCOPE}",
            *capacity,
            alpha=pod.capacity == "reserved",  # --reservation is in alpha alone
        )
    ]


def status(pod: Pod) -> list[Command]:
    """State of the request: WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED."""
    return [_gcloud(pod, "describe", "--format=value(state.state)")]


def setup(pod: Pod, *, build: bool) -> list[Command]:
    """The container on every host, and the data bucket mounted there."""
    steps = [f"sudo {shlex.join(login(pod))}", f"sudo docker pull {shlex.quote(pod.need('image'))}"]
    if pod.data:
        mount = f"sudo gcsfuse -o allow_other,ro --implicit-dirs {shlex.quote(pod.data_bucket())} {_MOUNT}"
        steps += [f"sudo mkdir -p {_MOUNT}", f"(mountpoint -q {_MOUNT} || {mount})"]
    return [*(build_image(pod) if build else []), _everywhere(pod, " && ".join(steps))]


def run(pod: Pod, flags: Sequence[str]) -> list[Command]:
    """Starts the container on every host and lets go of it: the job outlives this command."""
    container = [
        "docker",
        "run",
        "--detach",
        f"--name={pod.job()}",
        # Chips, locked memory for their transfers, the machine's own network and metadata, and its shared
        # memory, through which data workers hand batches over (a container has 64 MiB of its own).
        "--privileged",
        "--ulimit=memlock=-1",
        "--network=host",
        "--ipc=host",
        f"--stop-timeout={GRACE}",
        *([f"--restart=on-failure:{pod.restarts}"] if pod.restarts else []),
        *(f"--env={name}={value}" for name, value in environment(pod).items()),
        *([f"--volume={_MOUNT}:{DATA}:ro"] if pod.data else []),
        pod.need("image"),
        *flags,
    ]
    # The container of a job that has ended makes room; one that still runs makes the second line fail.
    clear = f"sudo docker rm {pod.job()} >/dev/null 2>&1"
    return [_everywhere(pod, f"{clear}; sudo {shlex.join(container)}")]


def logs(pod: Pod, *, everywhere: bool) -> list[Command]:
    """Follows process 0, or all, each line behind the number of its host."""
    show = f"sudo docker logs --follow --tail=200 {pod.job()}"
    return [_everywhere(pod, show) if everywhere else _gcloud(pod, "ssh", "--node=0", f"--command={show}")]


def stop(pod: Pod, *, delete: bool) -> list[Command]:
    """SIGTERM to every process, which then saves a checkpoint and ends; then the machines, if wanted."""
    made = [_everywhere(pod, f"sudo docker stop {pod.job()}")]
    if delete:
        made.append(_gcloud(pod, "delete", "--force", "--quiet"))
    return made


def _gcloud(pod: Pod, verb: str, *flags: str, alpha: bool = False) -> Command:
    return [
        "gcloud",
        *(["alpha"] if alpha else []),
        *("compute", "tpus", "queued-resources", verb, pod.job()),
        f"--project={pod.need('project')}",
        f"--zone={pod.need('zone')}",
        *flags,
    ]


def _everywhere(pod: Pod, command: str) -> Command:
    """On all hosts of all slices at the same time."""
    return _gcloud(pod, "ssh", "--node=all", "--worker=all", "--batch-size=all", f"--command={command}")
