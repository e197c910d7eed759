"""A real SLURM (tools/dev_slurm.sh up), or these tests are skipped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chain import Chain, output
from fixtures.processes import WarmPython

from dist_train.config import Config, MonitorConfig, configs_dir
from launch.slurm import jobs, scheduler


@pytest.fixture(scope="session")
def cluster() -> None:
    """Skip where there is no such SLURM."""
    if shutil.which("scontrol") is None or " UP" not in output("scontrol", "ping"):
        pytest.skip("no SLURM answers here; as root: tools/dev_slurm.sh up")
    if "dev" not in output("sinfo", "-h", "-o", "%R"):
        pytest.skip("this SLURM is not that of tools/dev_slurm.sh")


@pytest.fixture
def make_chain(
    cluster: None, config: Config, warm_python: WarmPython, tmp_path: Path
) -> Iterator[Callable[..., Chain]]:
    """Return ``make_chain(pretrain={...})``, which makes a run with changed options; its jobs end with the test.

    The ranks are forks of a warm Python, which has loaded the code of the checkout; with ``snapshot=True`` they are new
    interpreters, and run the snapshot that the submission has taken.
    """
    chains: list[Chain] = []
    profile = tmp_path / "dev.yaml"
    profile.write_text((configs_dir() / "clusters" / "dev.yaml").read_text() + f"python: {warm_python.python}\n")

    def make(name: str = "test", snapshot: bool = False, **changes: dict[str, Any]) -> Chain:
        parts = {key: replace(getattr(config, key), **values) for key, values in changes.items()}
        monitor = MonitorConfig(rank_timeout=8)
        changed = replace(config, name=name, **{"monitor": monitor, **parts})
        chains.append(Chain(changed, "dev" if snapshot else str(profile)))
        return chains[-1]

    yield make
    for chain in chains:
        scheduler.scancel([job.id for job in jobs.recorded(chain.run)])
    end = time.monotonic() + 60
    while any(jobs.active(chain.run) for chain in chains) and time.monotonic() < end:
        time.sleep(0.5)
