"""Real processes over gloo: started, signalled, killed and stopped, rank by rank.

They fork from a process that has the libraries loaded (tests/conftest.py), so a start takes a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml

from dist_train.config import Config, to_dict


@dataclass
class Ranks:
    """The processes of one start; ``errors[r]`` is what rank r wrote to stderr."""

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
        """Exit codes; a rank that is still there after ``seconds`` fails the test."""
        end = time.monotonic() + seconds
        for rank, process in enumerate(self.processes):
            process.join(max(0.1, end - time.monotonic()))
            assert not process.is_alive(), f"rank {rank} is still there after {seconds} s: {self.error(rank)[-2000:]}"
        return [process.exitcode for process in self.processes]

    def error(self, rank: int) -> str:
        return self.errors[rank].read_text()


def _rank(env: dict[str, str], arguments: list[str], error: str) -> None:
    """One rank, in its own process."""
    descriptor = os.open(error, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ |= {**env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
    import torch

    from launch.cli import main

    torch.set_num_threads(1)
    sys.exit(main(arguments))


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """``ranks(world, config, "pretrain", ...)`` starts a command on so many ranks; a list of
    configurations is one for each."""
    started: list[Ranks] = []
    context = multiprocessing.get_context("forkserver")

    def start(world: int, config: Config | list[Config], command: str, *arguments: str) -> Ranks:
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
            one.processes.append(context.Process(target=_rank, args=(env, line, str(one.errors[-1]))))
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
    """``until(condition)``: wait for it, or fail after ``seconds``."""

    def wait(condition: Callable[[], object], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "did not happen in time"
            time.sleep(0.02)

    return wait
