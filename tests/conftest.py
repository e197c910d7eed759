"""Shared by all tests: fixtures by subject, and in what order files are run."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fixtures.processes import start_forkserver

pytest_plugins = [
    "browsers",
    "fixtures.disks",
    "fixtures.downloads",
    "fixtures.images",
    "fixtures.processes",
    "fixtures.runs",
    "fixtures.signals",
]

ROOT = Path(__file__).parents[1]
# Before a library reads it, and for every process that a test starts: the command line would take all CPUs for each of
# several tests at a time, and threads that wait for their turn spin.
os.environ["OMP_NUM_THREADS"] = "1"


# Folders and files whose tests take or wait the longest: first, so that the short ones fill the gaps at the end.
FIRST = (
    "slurm", "test_gpu_check", "test_bench_serve", "test_fake_cuda", "serving", "launch", "docs", "distributed", "e2e",
    "gpu",
)  # fmt: skip


def pytest_collection_finish() -> None:
    """Start what ranks fork from before a test changes the environment. The process that hands tests out to workers
    collects none, and starts nothing here."""
    start_forkserver()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        names = (item.path.parent.name, item.path.stem)
        return next((number for number, name in enumerate(FIRST) if name in names), len(FIRST))

    items.sort(key=place)


@cache
def kept_together(file: str) -> bool:
    """Whether the tests of a file run in one worker: those that share a fixture of their module, and those of the
    cluster, which has two nodes only."""
    path = ROOT / file
    beside = path.with_name("conftest.py")
    text = path.read_text() + (beside.read_text() if beside != Path(__file__) and beside.is_file() else "")
    return 'scope="module"' in text or "browser: " in text or path.parent.name == "slurm"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests one by one, or by file where they are ``kept_together``."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if kept_together(file) else nodeid

    return Scheduling(config, log)
