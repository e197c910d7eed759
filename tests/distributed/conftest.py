"""Start real processes over gloo, and signal, stop and kill them rank by rank.

They fork from a process that has the libraries loaded (tests/conftest.py), so a start takes a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml
from rank_process import run_rank

from dist_train.config import Config, to_dict

Rank = Callable[[dict[str, str], list[str], str], None]


@dataclass
class Ranks:
    """Hold the processes of a start; ``errors[r]`` is the text that rank r wrote to stderr."""

    processes: list[BaseProcess]
    errors: list[Path]

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        for rank in range(len(self.processes)) if ranks is None else ranks:
            pid = self.processes[rank].pid
            assert pid is not None
            os.kill(pid, number)

    def running(self, rank: int) -> bool:
        return self.processes[rank].is_alive()

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Return the exit codes; a rank that still runs after ``seconds`` fails the test."""
        end = time.monotonic() + seconds
        for rank, process in enumerate(self.processes):
            process.join(max(0.1, end - time.monotonic()))
            assert not process.is_alive(), f"rank {rank} is still there after {seconds} s: {self.error(rank)[-2000:]}"
        return [process.exitcode for process in self.processes]

    def error(self, rank: int) -> str:
        return self.errors[rank].read_text()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Return ``ranks(world, config, "pretrain", ...)``, which starts a command on ``world`` ranks. ``config`` may be a
    list with a configuration for each rank."""
    started: list[Ranks] = []
    context = multiprocessing.get_context("forkserver")

    def start(
        world: int, config: Config | list[Config], command: str, *arguments: str, target: Rank = run_rank
    ) -> Ranks:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        one = Ranks([], [])
        started.append(one)
        for rank, options in enumerate(config if isinstance(config, list) else [config] * world):
            path = tmp_path / f"config-{len(started)}-{rank}.yaml"
            path.write_text(yaml.safe_dump(to_dict(options)))
            env = {}
            if world > 1:
                names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
                env = {name: str(value) for name, value in names.items()}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            one.errors.append(tmp_path / f"stderr-{len(started)}-{rank}")
            one.errors[-1].touch()
            line = [command, "--config", str(path), *arguments]
            one.processes.append(context.Process(target=target, args=(env, line, str(one.errors[-1]))))
            one.processes[-1].start()
        return one

    yield start
    for one in started:
        for rank, process in enumerate(one.processes):
            if process.is_alive():
                one.signal(signal.SIGCONT, [rank])
                process.kill()
                process.join()


@pytest.fixture
def until() -> Callable[..., None]:
    """Return ``until(condition)``, which waits for the condition, or fails after ``seconds``."""

    def wait(condition: Callable[[], object], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "did not happen in time"
            time.sleep(0.02)

    return wait
