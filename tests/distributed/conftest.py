"""Real processes over gloo: started, signalled, killed and stopped, rank by rank."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from dist_train.config import Config, to_dict


@dataclass
class Ranks:
    """The processes of one start; ``errors[r]`` is what rank r wrote to stderr."""

    processes: list[subprocess.Popen[str]]
    errors: list[Path]
    codes: list[int] = field(default_factory=list)

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        for rank in range(len(self.processes)) if ranks is None else ranks:
            self.processes[rank].send_signal(number)

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes; a rank that is still there after ``seconds`` fails the test."""
        end = time.monotonic() + seconds
        self.codes = [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        return self.codes

    def error(self, rank: int) -> str:
        return self.errors[rank].read_text()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """``ranks(world, config, "pretrain", ...)`` starts a command on so many ranks; a list of
    configurations is one for each."""
    started: list[Ranks] = []

    def start(world: int, config: Config | list[Config], command: str, *arguments: str) -> Ranks:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes, errors = [], []
        for rank, options in enumerate(config if isinstance(config, list) else [config] * world):
            path = tmp_path / f"config-{len(started)}-{rank}.yaml"
            path.write_text(yaml.safe_dump(to_dict(options)))
            env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            if world > 1:
                names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
                env |= {name: str(value) for name, value in names.items()}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            errors.append(tmp_path / f"stderr-{len(started)}-{rank}")
            line = [sys.executable, "-m", "dist_train", command, "--config", str(path), *arguments]
            processes.append(subprocess.Popen(line, env=env, stderr=errors[-1].open("w"), text=True))
        started.append(Ranks(processes, errors))
        return started[-1]

    yield start
    for one in started:
        for process in one.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


@pytest.fixture
def until() -> Callable[..., None]:
    """``until(condition)``: wait for it, or fail after ``seconds``."""

    def wait(condition: Callable[[], object], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "did not happen in time"
            time.sleep(0.02)

    return wait
