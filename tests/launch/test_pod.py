# SPDX-License-Identifier: Apache-2.0
"""What `launch.pod` prints is what it runs; wrong settings are named; the container file fits the tree."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from launch import pod
from launch.accelerators import ACCELERATORS, find_accelerator
from launch.pods import DOCKERFILE
from vllm2_jax.sharding.chips import CHIPS

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ["--settings", str(ROOT / "launch" / "pod_example.toml")]
XPK = [*EXAMPLE, "--backend=xpk", "--cluster=my-cluster", "--slices=2", "--restarts=9"]
TRAIN = ["--", "--config", "configs/stage1_tune_7b.py", "--config.data.root=/data/my set"]


def printed(capsys, verb: str, *flags: str) -> list[list[str]]:
    """The commands of a dry run, read as a shell reads them."""
    rest = flags[flags.index("--") :] if "--" in flags else ()
    code = pod.main([verb, *flags[: len(flags) - len(rest)], "--dry-run", *rest])
    out = capsys.readouterr()
    assert code == 0, out.err
    return [shlex.split(line) for line in out.out.replace("\\\n", " ").splitlines()]


def fault(capsys, verb: str, *flags: str) -> str:
    assert pod.main([verb, *flags, "--dry-run"]) == 2
    return capsys.readouterr().err


def on_hosts(command: list[str]) -> str:
    """What every host is told to do."""
    assert {"--node=all", "--worker=all", "--batch-size=all"} <= set(command)
    return command[-1].removeprefix("--command=")


WHERE = ["--project=my-project", "--zone=us-east5-a"]
QUEUED = ["compute", "tpus", "queued-resources"]


def test_create_queues_all_slices_at_once(capsys):
    scope = "--scopes=https://www.googleapis.com/auth/cloud-platform"
    request = ["--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5"]
    assert printed(capsys, "create", *EXAMPLE) == [
        [
            *("gcloud", *QUEUED, "create", "stage1-tune", *WHERE),
            *(*request, "--node-id=stage1-tune", scope, "--spot"),
        ]
    ]
    reserved = ["--slices=4", "--capacity=reserved", "--reservation=ours", "--runtime=v2-alpha-new"]
    assert printed(capsys, "create", *EXAMPLE, *reserved) == [
        [
            *("gcloud", "alpha", *QUEUED, "create", "stage1-tune", *WHERE, request[0]),
            *("--runtime-version=v2-alpha-new", "--node-count=4", "--node-prefix=stage1-tune"),
            *(scope, "--reservation=ours"),
        ]
    ]


def test_all_hosts_run_the_same_container(capsys):
    (command,) = printed(capsys, "run", *EXAMPLE, *TRAIN)
    clear, start = on_hosts(command).split("; ")
    assert clear == "sudo docker rm stage1-tune >/dev/null 2>&1"
    assert shlex.split(start) == [
        *("sudo", "docker", "run", "--detach", "--name=stage1-tune", "--privileged"),
        *("--ulimit=memlock=-1", "--network=host", "--ipc=host", "--stop-timeout=300"),
        "--env=JAX_COMPILATION_CACHE_DIR=gs://my-runs/compile_cache",
        "--volume=/mnt/vllm2_data:/data:ro",
        "us-docker.pkg.dev/my-project/vllm2/train:1",
        *("--config", "configs/stage1_tune_7b.py", "--config.data.root=/data/my set"),
        *("--multihost", "--workdir=gs://my-runs/runs/stage1-tune"),
    ]
    (own,) = printed(capsys, "run", *EXAMPLE, "--restarts=3", *TRAIN, "--workdir=gs://other/run")
    assert "gs://my-runs/runs" not in on_hosts(own) and "--restart=on-failure:3" in on_hosts(own)


def test_setup_builds_here_and_fetches_there(capsys):
    build, login, push, hosts = printed(capsys, "setup", *EXAMPLE)
    image = "us-docker.pkg.dev/my-project/vllm2/train:1"
    assert build == [
        *("docker", "build", "--platform=linux/amd64", f"--file={DOCKERFILE}", f"--tag={image}", "."),
    ]
    assert login[-2:] == ["us-docker.pkg.dev", "--quiet"] and push == ["docker", "push", image]
    assert f"sudo docker pull {image}" in on_hosts(hosts)
    assert "sudo gcsfuse -o allow_other,ro --implicit-dirs my-data /mnt/vllm2_data" in on_hosts(hosts)
    (again,) = printed(capsys, "setup", *EXAMPLE, "--no-build", "--data=")
    assert on_hosts(again).endswith(f"&& sudo docker pull {image}")


def test_status_logs_and_stop(capsys):
    assert printed(capsys, "status", *EXAMPLE) == [
        ["gcloud", *QUEUED, "describe", "stage1-tune", *WHERE, "--format=value(state.state)"]
    ]
    (logs,) = printed(capsys, "logs", *EXAMPLE)
    assert logs[-2:] == ["--node=0", "--command=sudo docker logs --follow --tail=200 stage1-tune"]
    stop, delete = printed(capsys, "stop", *EXAMPLE, "--delete")
    assert on_hosts(stop) == "sudo docker stop stage1-tune"
    assert delete == ["gcloud", *QUEUED, "delete", "stage1-tune", *WHERE, "--force", "--quiet"]


def test_xpk(capsys):
    here = ["--cluster=my-cluster", *WHERE]
    cluster, storage = printed(capsys, "create", *XPK)
    assert cluster == [
        *("xpk", "cluster", "create", *here, "--tpu-type=v5p-128", "--num-slices=2"),
        *("--spot", "--enable-gcsfuse-csi-driver"),
    ]
    assert storage[:4] == ["xpk", "storage", "attach", "vllm2-data"] and "--mount-point=/data" in storage
    (run,) = printed(capsys, "run", *XPK, *TRAIN)
    assert run == [
        *("xpk", "workload", "create", *here, "--workload=stage1-tune", "--tpu-type=v5p-128"),
        *("--num-slices=2", "--docker-image=us-docker.pkg.dev/my-project/vllm2/train:1"),
        *("--max-restarts=9", "--restart-on-exit-codes=1,4,42", "--termination-grace-period-seconds=300"),
        *("--env=JAX_COMPILATION_CACHE_DIR=gs://my-runs/compile_cache", "--storage=vllm2-data"),
        "--command=exec python -m launch.train --stopped_code=42 --config configs/stage1_tune_7b.py "
        "'--config.data.root=/data/my set' --multihost --workdir=gs://my-runs/runs/stage1-tune",
    ]
    credentials, logs = printed(capsys, "logs", *XPK)
    assert credentials[-1] == "--region=us-east5"
    assert logs[-1].startswith("--selector=xpk.google.com/workload=stage1-tune,jobset")
    assert printed(capsys, "logs", *XPK, "--all")[1][-1] == "--selector=xpk.google.com/workload=stage1-tune"
    stop, delete = printed(capsys, "stop", *XPK, "--delete")
    assert stop == ["xpk", "workload", "delete", *here, "--workload=stage1-tune"]
    assert delete == ["xpk", "cluster", "delete", *here]


@pytest.mark.parametrize(
    "verb, flags, message",
    [
        ("create", ["--accelerator=v5p-100"], "unknown accelerator 'v5p-100'; there are v5p-8, v5p-16,"),
        ("create", ["--accelerator=v5e-256"], "there are v5litepod-4, v5litepod-8,"),
        ("create", ["--accelerator=h100-8"], "there are v4-8, "),
        ("create", ["--accelerator="], "missing setting 'accelerator': give --accelerator"),
        ("create", ["--capacity=cheap"], "choose one of on-demand, spot, reserved"),
        ("create", ["--capacity=reserved"], "missing setting 'reservation'"),
        ("create", ["--reservation=ours"], "a reservation goes with capacity reserved, not spot"),
        ("create", ["--slices=0"], "slices has to be 1 or more"),
        ("create", ["--name=My_Job"], "28 lower-case letters, digits and hyphens"),
        ("create", ["--backend=slurm"], "unknown backend 'slurm'; choose one of queued, xpk"),
        ("create", ["--backend=xpk"], "missing setting 'cluster'"),
        ("setup", ["--data=gs://my-data/coco"], "its folders are /data/FOLDER"),
        ("run", ["--bucket=my-runs"], "has to be gs://BUCKET"),
        ("run", ["--bucket=gs://"], "has to be gs://BUCKET"),
        ("run", [], "-- --config configs/X.py"),
    ],
)
def test_settings_at_fault(verb, flags, message, capsys):
    rest = ["--", "--config=configs/base.py"] if flags and verb == "run" else []
    assert pod.main([verb, *EXAMPLE, *flags, "--dry-run", *rest]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "configs/nope.py:7b"], "--config=configs/nope.py:7b: there is no file"),
        (["--config"], "--config=: there is no file"),
        (["--config=configs/base.py:7b", "--workdir", "runs/one"], "--workdir=runs/one is lost with the"),
    ],
)
def test_flags_of_training_that_no_host_could_use_are_named(flags, message, capsys):
    assert pod.main(["run", *EXAMPLE, "--dry-run", "--", *flags]) == 2
    assert message in capsys.readouterr().err


def test_dry_run_among_the_flags_of_training_starts_nothing(capsys):
    assert pod.main(["run", *EXAMPLE, *TRAIN, "--dry-run"]) == 2
    assert "put it in front of --" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ('colour = "red"', "unknown setting 'colour'; there are backend, name,"),
        ('slices = "2"', "slices has to be of type int"),
        ("slices =", "not TOML"),
    ],
)
def test_settings_file_at_fault(text, message, tmp_path, capsys):
    (tmp_path / "pod.toml").write_text(text)
    assert message in fault(capsys, "create", "--settings", str(tmp_path / "pod.toml"))
    assert "pod.toml" in fault(capsys, "create", "--settings", str(tmp_path / "missing" / "pod.toml"))


RECORDER = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(["gcloud", *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("CODE", "0")))
"""


def test_runs_what_it_prints(tmp_path, monkeypatch, capsys):
    (tmp_path / "gcloud").write_text(RECORDER)
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    wanted = printed(capsys, "stop", *EXAMPLE, "--delete")
    assert not (tmp_path / "calls").exists()
    assert pod.main(["stop", *EXAMPLE, "--delete"]) == 0
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == wanted and len(calls) == 2

    monkeypatch.setenv("CODE", "7")
    assert pod.main(["stop", *EXAMPLE, "--delete"]) == 1
    assert "gcloud failed with exit code 7" in capsys.readouterr().err
    assert len((tmp_path / "calls").read_text().splitlines()) == 3  # the second command did not run

    assert pod.main(["setup", *EXAMPLE]) == 2
    assert "not installed, or not on PATH: docker;" in capsys.readouterr().err


def test_slices_are_those_of_the_compiler():
    assert find_accelerator("v5p-128").topology == "v5p:4x4x4"
    assert find_accelerator("v5litepod-256").topology == "v5e:16x16"
    for name, slice_ in ACCELERATORS.items():
        chip, _, shape = slice_.topology.partition(":")
        assert len(shape.split("x")) == CHIPS[chip].dims, name


def test_container_file_fits_the_tree():
    lines = (ROOT / DOCKERFILE).read_text().replace("\\\n", " ").splitlines()
    copied = [path for line in lines if line.startswith("COPY") for path in line.split()[1:-1]]
    assert {"setup.py", "README.md", "vllm2_jax", "launch"} <= set(copied)
    assert all((ROOT / path).exists() for path in copied), copied
    extras = re.findall(r"\.\[(\w+)\]", "\n".join(lines))
    assert extras and all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras)
    user = next(i for i, line in enumerate(lines) if line.startswith("USER"))
    assert lines[user] != "USER root" and lines.index('ENTRYPOINT ["python", "-m", "launch.train"]') > user


def test_the_commands_of_the_docs_are_what_it_prints():
    text = (ROOT / "docs" / "pods.md").read_text()
    shown = re.findall(r"\n\$ python (-m launch\.pod [^\n]*--dry-run[^\n]*)\n(.*?)\n```", text, re.DOTALL)
    assert len(shown) >= 3
    for flags, output in shown:
        command = [sys.executable, *shlex.split(flags)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "100"}
        )
        assert done.stdout.strip() == output.strip(), flags
