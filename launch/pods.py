# SPDX-License-Identifier: Apache-2.0
"""The settings of a job on Cloud TPU, and the parts of its commands that do not depend on the backend."""

import dataclasses
import re
from typing import TypeAlias

from launch.accelerators import Accelerator, find_accelerator

Command: TypeAlias = list[str]

DOCKERFILE = "launch/Dockerfile"
DATA = "/data"  # where the data bucket lies in the container
GRACE = 300  # seconds between SIGTERM and SIGKILL; writing a checkpoint has to take less
CAPACITIES = ("on-demand", "spot", "reserved")


def _setting(default: str | int, text: str):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Pod:
    """One job and the slices it runs on; "" is not set. The meanings are the help of `launch.pod`."""

    backend: str = _setting("queued", "queued (Cloud TPU queued resources) or xpk (GKE)")
    name: str = _setting("", "of the job; with queued also of its slices")
    project: str = _setting("", "Google Cloud project")
    zone: str = _setting("", "such as us-east5-a")
    accelerator: str = _setting("", "type of a slice, such as v5litepod-256, v5p-128 or v6e-256")
    slices: int = _setting(1, "joined by the data-centre network")
    capacity: str = _setting("on-demand", "on-demand, spot or reserved")
    reservation: str = _setting("", "the reservation, if capacity is reserved")
    runtime: str = _setting("", "software version of the hosts; by default that of the generation (queued)")
    cluster: str = _setting("", "GKE cluster (xpk)")
    bucket: str = _setting("", "gs://... for runs/ and compile_cache/, in the region of the zone")
    data: str = _setting("", f"gs://BUCKET that every host sees, read-only, as {DATA}")
    image: str = _setting("", "container image, such as REGION-docker.pkg.dev/PROJECT/REPOSITORY/vllm2:TAG")
    restarts: int = _setting(0, "times a job that failed is started again")

    def need(self, name: str) -> str:
        """A setting that has to be there; raises ValueError if it is not."""
        value = getattr(self, name)
        if not value:
            raise ValueError(f'missing setting {name!r}: give --{name}, or {name} = "..." in --settings')
        return value

    def slice(self) -> Accelerator:
        """The type of a slice; raises ValueError if there is none such."""
        if self.slices < 1:
            raise ValueError(f"slices has to be 1 or more, not {self.slices}")
        return find_accelerator(self.need("accelerator"))

    def job(self) -> str:
        """The name; raises ValueError if Cloud and Kubernetes would not take it."""
        if not re.fullmatch("[a-z]([a-z0-9-]{0,26}[a-z0-9])?", self.need("name")):
            raise ValueError(f"name = {self.name!r}: up to 28 lower-case letters, digits and hyphens")
        return self.name

    def folder(self) -> str:
        """Where runs and compiled programs are kept; raises ValueError if it is not in a bucket."""
        url = self.need("bucket").rstrip("/")
        if not re.match("gs://[^/]", url):
            raise ValueError(f"bucket = {self.bucket!r}: has to be gs://BUCKET, or a folder in it")
        return url

    def data_bucket(self) -> str:
        """Name of the data bucket; raises ValueError if the setting is none."""
        bucket = self.need("data").rstrip("/")
        if not re.fullmatch("gs://[^/]+", bucket):
            raise ValueError(f"data = {bucket!r}: give gs://BUCKET alone; its folders are {DATA}/FOLDER")
        return bucket.removeprefix("gs://")

    def capacity_flags(self, reserved: str) -> Command:
        """How the slices are paid for.

        Args:
          reserved: the flag that takes the reservation.

        Raises:
          ValueError: an unknown capacity, or a reservation that does not go with it.
        """
        if self.capacity not in CAPACITIES:
            raise ValueError(f"unknown capacity {self.capacity!r}; choose one of {', '.join(CAPACITIES)}")
        if self.capacity == "reserved":
            return [f"{reserved}={self.need('reservation')}"]
        if self.reservation:
            raise ValueError(f"a reservation goes with capacity reserved, not {self.capacity}")
        return ["--spot"] if self.capacity == "spot" else []


def build_image(pod: Pod) -> list[Command]:
    """Builds the container from the working tree, here, and pushes it."""
    image = pod.need("image")
    return [
        ["docker", "build", "--platform=linux/amd64", f"--file={DOCKERFILE}", f"--tag={image}", "."],
        login(pod),
        ["docker", "push", image],
    ]


def login(pod: Pod) -> Command:
    """Lets docker read and write the registry of the image."""
    return ["gcloud", "auth", "configure-docker", pod.need("image").split("/")[0], "--quiet"]


def environment(pod: Pod) -> dict[str, str]:
    """Variables of every process: programs that one run has compiled are there for the next."""
    return {"JAX_COMPILATION_CACHE_DIR": f"{pod.folder()}/compile_cache"}
