"""A real SLURM (tools/dev_slurm.sh up), or these tests are skipped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from chain import Chain, output
from fixtures.processes import WarmPython

from dist_train.config import Config, MonitorConfig
from launch.slurm import jobs, scheduler

DEV = Path(__file__).parents[2] / "configs" / "clusters" / "dev.yaml"


@pytest.fixture(scope="session")
def cluster() -> None:
    """Skip where there is no such SLURM."""
    if shutil.which("scontrol") is None or " UP" not in output("scontrol", "ping"):
        pytest.skip("no SLURM answers here; as root: tools/dev_slurm.sh up")
    if "dev" not in output("sinfo", "-h", "-o", "%R"):
        pytest.skip("this SLURM is not that of tools/dev_slurm.sh")


@pytest.fixture
def warm_profile(tmp_path: Path, warm_python: WarmPython) -> str:
    """Return the profile ``dev`` with an interpreter that starts in a moment."""
    path = tmp_path / "warm.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(DEV.read_text()), "python": warm_python.python}))
    return str(path)


@pytest.fixture
def make_chain(cluster: None, config: Config, warm_profile: str) -> Iterator[Callable[..., Chain]]:
    """Return ``make_chain(pretrain={...})``, which makes a run with changed options; its jobs end with the test.
    With ``real`` its jobs start this Python itself."""
    chains: list[Chain] = []

    def make(name: str = "test", real: bool = False, **changes: dict[str, Any]) -> Chain:
        parts = {key: replace(getattr(config, key), **values) for key, values in changes.items()}
        monitor = MonitorConfig(rank_timeout=8)
        chains.append(
            Chain(replace(config, name=name, **{"monitor": monitor, **parts}), "dev" if real else warm_profile)
        )
        return chains[-1]

    yield make
    for chain in chains:
        scheduler.scancel([job.id for job in jobs.recorded(chain.run)])
    end = time.monotonic() + 60
    while any(jobs.active(chain.run) for chain in chains) and time.monotonic() < end:
        time.sleep(0.5)
