"""A run on a real SLURM, and what a test does to it. It is not in conftest.py because tests import it by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dist_train.config import Config, to_dict
from dist_train.training import metrics
from launch.cli.main import main
from launch.slurm import jobs, scheduler

TOOL = Path(__file__).parents[2] / "tools" / "dev_slurm.sh"


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


@dataclass
class Chain:
    """Describe a run for SLURM, and the cluster's profile that it is submitted with."""

    config: Config
    cluster: str = "dev"

    @property
    def run(self) -> Path:
        return self.config.run_dir

    def submit(self, *options: str) -> int:
        path = self.run.parent / f"{self.run.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(to_dict(self.config)))
        return main(["launch", "slurm", "--config", str(path), "--cluster", self.cluster, *options])

    def job(self, stage: str) -> str:
        return next(job.id for job in jobs.newest(self.run) if job.stage == stage)

    def state(self, stage: str) -> str:
        states = scheduler.states([self.job(stage)])
        return states[self.job(stage)].state if self.job(stage) in states else ""

    def wait(self, condition: Callable[[], Any], seconds: float = 300) -> None:
        """Wait until a condition is true; fail with the logs after so many seconds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"did not happen in {seconds} s\n{self.logs()}"
            time.sleep(0.2)

    def finished(self, stage: str = "evaluate") -> bool:
        if (self.run / stage / "done.json").is_file():
            return True
        assert jobs.active(self.run), f"the chain has ended without {stage}\n{self.logs()}"
        return False

    def logs(self) -> str:
        files = sorted(jobs.folder(self.run).glob("*.out"), key=lambda path: path.stat().st_mtime)
        states = output("squeue", "-a") + output("sacct", "-X", "-o", "JobID,JobName%30,State,ExitCode")[-1500:]
        return "\n".join([states, *(f"==> {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in files)])

    def ranks(self, stage: str) -> dict[int, int]:
        """Return the process id of each rank of a stage's job."""
        pids = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environ, cmdline = (  # of any process of the machine, whose bytes need not be UTF-8
                    (folder / name).read_text(errors="surrogateescape").split("\0") for name in ("environ", "cmdline")
                )
            except OSError:
                continue
            variables = dict(entry.split("=", 1) for entry in environ if "=" in entry)
            mine = variables.get("SLURM_JOB_ID") == self.job(stage) and "SLURM_STEP_NUM_TASKS" in variables
            if mine and "submitit.core._submit" in cmdline:
                pids[int(variables["SLURM_PROCID"])] = int(folder.name)
        return pids

    def rows(self, stage: str) -> list[dict[str, Any]]:
        return metrics.read_metrics(self.run / stage / "metrics.jsonl")

    def table(self) -> dict[str, Any]:
        methods: dict[str, Any] = json.loads((self.run / "evaluate" / "results.json").read_text())["methods"]
        return methods

    def restarts(self, stage: str, member: str = "") -> int:
        text = output("scontrol", "-o", "show", "job", self.job(stage) + member)
        return int(text.partition("Restarts=")[2].split(" ")[0])

    def kill(self, stage: str, rank: int) -> None:
        os.kill(self.ranks(stage)[rank], signal.SIGKILL)
