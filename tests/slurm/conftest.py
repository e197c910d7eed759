"""A real SLURM (tools/dev_slurm.sh up), or these tests are skipped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from chain import Chain, output

from dist_train.config import Config, MonitorConfig
from launch.slurm import jobs, scheduler


@pytest.fixture(scope="session")
def cluster() -> None:
    """Skip where there is no such SLURM."""
    if shutil.which("scontrol") is None or " UP" not in output("scontrol", "ping"):
        pytest.skip("no SLURM answers here; as root: tools/dev_slurm.sh up")
    if "dev" not in output("sinfo", "-h", "-o", "%R"):
        pytest.skip("this SLURM is not that of tools/dev_slurm.sh")


@pytest.fixture
def make_chain(cluster: None, config: Config) -> Iterator[Callable[..., Chain]]:
    """Return ``make_chain(pretrain={...})``, which makes a run with changed options; its jobs end with the test."""
    chains: list[Chain] = []

    def make(name: str = "test", **changes: dict[str, Any]) -> Chain:
        parts = {key: replace(getattr(config, key), **values) for key, values in changes.items()}
        monitor = MonitorConfig(rank_timeout=8)
        chains.append(Chain(replace(config, name=name, **{"monitor": monitor, **parts})))
        return chains[-1]

    yield make
    for chain in chains:
        scheduler.scancel([job.id for job in jobs.recorded(chain.run)])
    end = time.monotonic() + 60
    while any(jobs.active(chain.run) for chain in chains) and time.monotonic() < end:
        time.sleep(0.5)
