"""Two hosts with addresses of their own (network namespaces) under torchrun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dist_train.config import Config, to_dict
from dist_train.distributed.rendezvous import interface_towards, read_environment

NAMES = [f"dt{os.getpid()}a", f"dt{os.getpid()}b"]


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Make two namespaces, 10.77.0.1 and 10.77.0.2, that reach only each other."""
    a, b = NAMES
    lines = [f"netns add {a}", f"netns add {b}", f"link add v0 netns {a} type veth peer name v1 netns {b}"]
    for name, device, address in ((a, "v0", "10.77.0.1"), (b, "v1", "10.77.0.2")):
        lines += [f"-n {name} address add {address}/24 dev {device}", f"-n {name} link set {device} up",
                  f"-n {name} link set lo up"]  # fmt: skip
    if shutil.which("ip") is None or os.getuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for line in lines:
            done = subprocess.run(["ip", *line.split()], capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield NAMES
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_hosts_under_torchrun(config: Config, hosts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    torchrun = str(Path(sys.executable).parent / "torchrun")
    started = []
    for rank, name in enumerate(hosts):
        line = ["ip", "netns", "exec", name, torchrun, "--nnodes", "2", "--node-rank", str(rank),
                "--nproc-per-node", "1", "--master-addr", "10.77.0.1", "--master-port", "29511", "-m", "dist_train",
                "pretrain", "--config", str(path)]  # fmt: skip
        started.append(subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": "1"}))  # fmt: skip
    errors = [process.communicate(timeout=180)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    assert "2 ranks on" in errors[0] and "over v0" in errors[0]
    assert (config.run_dir / "pretrain" / "done.json").is_file()


def test_interfaces() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no.such.host.invalid") is None


def test_tasks_of_a_step() -> None:
    step = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "0", "SLURM_NODEID": "3",
            "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}  # fmt: skip
    place = read_environment(step)
    assert (place.rank, place.world, place.local_rank, place.local_world, place.launcher) == (5, 7, 0, 1, "slurm")
