"""``launch local``: torch's launcher in process, and the chain without SLURM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from fixtures.processes import WarmPython

from dist_train.config import BackboneConfig, Config, DataConfig, MonitorConfig, PackConfig, PretrainConfig, to_dict
from dist_train.distributed import devices
from dist_train.errors import STOPPED, UserError
from dist_train.training.metrics import read_metrics, reproducible
from launch.cli.main import main
from launch.doctor import machine
from launch.slurm.chain import PlannedJob, Task
from launch.slurm.profile import Resources
from launch.slurm.submit import run_here

ROOT = Path(__file__).parents[2]


def options(config: Config) -> list[str]:
    """Write this configuration to a file, and return the option that names it."""
    path = config.run_dir.parent / f"{config.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(to_dict(config)))
    return ["--config", str(path)]


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


def table(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.run_dir / "evaluate" / "results.json").read_text())["methods"]
    return found


def test_a_killed_worker_and_ctrl_c_end_in_the_same_table(config: Config, warm_python: WarmPython) -> None:
    config = replace(config, monitor=MonitorConfig(rank_timeout=8),
                     pretrain=replace(config.pretrain, epochs=8, checkpoint_every=5))  # fmt: skip
    whole, hurt = replace(config, name="whole"), replace(config, name="hurt")
    assert warm_python.run("launch", "local", "--workers", "2", *options(whole)).returncode == 0

    def rows() -> int:
        return len(read_metrics(hurt.run_dir / "pretrain" / "metrics.jsonl"))

    running = warm_python.start(
        "launch", "local", "--workers", "2", *options(hurt), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: rows() > 6)
    before = rows()
    workers = [
        c for c in children(warm_python.forked(running.pid)) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()
    ]
    os.kill(workers[-1], signal.SIGKILL)
    wait_for(lambda: rows() > before + 2)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=90)
    assert running.returncode == STOPPED, error[-3000:]
    assert "a rank died (exit code 137); starting again" in error
    # torch's launcher collects the workers' results, and prints nothing of its own about them.
    assert not any(word in error for word in ("Traceback", "forcefully", "Terminating")), error[-3000:]
    assert warm_python.run("launch", "local", "--workers", "2", *options(hurt)).returncode == 0
    assert table(hurt) == table(whole)
    curves = [reproducible(read_metrics(c.run_dir / "pretrain" / "metrics.jsonl")) for c in (hurt, whole)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("what", ["shards", "archive", "batch", "weights"])
def test_bad_input_is_printed_once_and_not_started_again(
    what: str, config: Config, tmp_path: Path, warm_python: WarmPython
) -> None:
    wrong = replace(config, data=replace(config.data, shards=str(tmp_path / "nowhere")))
    if what == "archive":  # rank 0 alone finds it
        wrong = replace(wrong, pack=PackConfig(train=tmp_path / "nowhere"))
    if what == "batch":  # all ranks find it at once
        wrong = replace(wrong, pretrain=replace(config.pretrain, global_batch=63))
    if what == "weights":  # the first stage finds it
        (tmp_path / "nowhere.pth").write_bytes(bytes(1000))
        untrained = {key: getattr(DataConfig(), key) for key in ("train_size", "eval_resize", "eval_size")}
        backbone = BackboneConfig(source="timm:test_resnet", weights=tmp_path / "nowhere.pth")
        data = replace(config.data, **untrained)
        wrong = replace(config, data=data, pretrain=PretrainConfig(), backbone=backbone)
    done = warm_python.run("launch", "local", "--workers", "2", *options(wrong))
    errors = [line for line in done.stderr.splitlines() if "dist-train: error: " in line and " leaves: " not in line]
    assert done.returncode == 1 and len(errors) == 1, done.stderr
    said = {"batch": "63 images do not divide", "weights": f"{tmp_path}/nowhere.pth: cannot be read as weights"}
    assert said.get(what, f"{tmp_path}/nowhere: no ") in errors[0]
    assert "Traceback" not in done.stderr and "starting again" not in done.stderr
    assert not config.run_dir.exists()


def test_the_chain_without_slurm(config: Config, capsys: pytest.CaptureFixture[str], warm_python: WarmPython) -> None:
    one = replace(config, name="chain")
    start = ("launch", "slurm", "--here", "--cluster", "dev")
    done = warm_python.run(*start, "--tasks-per-node", "2", *options(one))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "evaluate: 2 processes, log " in done.stdout and table(one)
    assert main(["logs", str(one.run_dir), "--stage", "evaluate"]) == 0
    assert "report: " in capsys.readouterr().out
    whole, profile = table(one), one.runs / "array.yaml"
    shutil.rmtree(one.run_dir / "evaluate")
    profile.write_text("stages: {evaluate: {array: 2}}")
    done = warm_python.run(*start[:-1], str(profile), *options(one))
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["evaluate", "evaluate", "merge"]
    assert table(one) == whole
    broken = replace(one, name="broken", pretrain=replace(config.pretrain, lr=1e9))
    done = warm_python.run(*start, "--stages", "extract", *options(broken))
    assert done.returncode == 1 and "extract needs pretrain" in done.stderr


def test_without_a_run_or_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(tmp_path)]) == 1
    assert "no job was submitted" in capsys.readouterr().err
    assert main(["launch", "tensorboard", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main(["collect", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"dist-train: error: {tmp_path}: has no sweep, or is no run; one is made")
    assert main(["collect", "nowhere"]) == 1
    assert capsys.readouterr().err == "dist-train: error: nowhere: no such folder; give RUNS/NAME\n"


def test_doctor_on_any_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out
    assert all(line.split()[0] in ("ok", "warning") for line in lines.splitlines())
    for what in ("python", "torch", "dali", "cpus", "ports", "runs"):
        assert f" {what} " in lines
    (tmp_path / "file").touch()
    assert main(["doctor", "--runs", str(tmp_path / "file" / "runs")]) == 1
    assert "choose another folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "argument", "wanted"),
    [
        ("sys:exit", 75, 75),
        ("builtins:print", "dist-train: stopped (a signal); the same command continues", 0),
        ("sys:exit", 1, "learn did not end well"),
        ("os:_exit", 9, "learn did not end well"),
        ("builtins:int", "no number", "learn did not end well"),
    ],
    ids=["stopped", "says so only", "refused", "killed", "crashed"],
)
def test_a_chain_without_slurm_ends_by_the_exit_codes_of_its_ranks(
    config: Config, function: str, argument: object, wanted: int | str, warm_executable: None
) -> None:
    task = Task(function, (argument,), config.run_dir, "")
    job = PlannedJob("learn", Resources(tasks_per_node=2), (task,))
    if isinstance(wanted, str):
        with pytest.raises(UserError, match=wanted):
            run_here(config, [job])
    else:
        assert run_here(config, [job]) == wanted


@pytest.mark.parametrize(
    ("built", "wheels", "driver", "lines"),
    [
        ("13.0", ["cuda130"], None, ["ok dali"]),
        ("13.0", ["cuda120"], (13, 0), ["error dali nvidia-dali-cuda120 2.4.0 beside torch for CUDA 13"]),
        ("12.8", ["cuda120"], (12, 4), ["ok dali", "takes CUDA 12.4; the extra cuda12 fits"]),
        ("13.0", ["cuda120", "cuda130"], None, ["error dali", "in one folder"]),
        ("13.0", ["cuda130", "cuda130"], None, ["ok dali nvidia-dali-cuda130 2.4.0"]),  # sys.path has the folder twice
        ("13.0", [], None, ["error dali no wheel"]),
        ("13.0", ["cuda130"], (11, 8), ["warning driver takes CUDA 11.8; too old", "error gpu SLURM allocated GPUs"]),
        ("13.0", ["cuda130"], (14, 1), ["ok driver takes CUDA 14.1; the extra cuda13 fits"]),
        ("13.0", ["cuda130"], (12, 4), ["takes CUDA 12.4; the extra cuda12 fits", "error gpu SLURM allocated GPUs"]),
    ],
)
def test_doctor_says_which_wheels_fit(
    monkeypatch: pytest.MonkeyPatch, built: str, wheels: list[str], driver: tuple[int, int] | None, lines: list[str]
) -> None:
    installed = [SimpleNamespace(metadata={"Name": f"nvidia-dali-{name}"}, version="2.4.0") for name in wheels]
    monkeypatch.setattr(machine, "distributions", lambda: installed)
    monkeypatch.setattr(torch.version, "cuda", built)
    for module in (machine, devices):
        monkeypatch.setattr(module, "driver_cuda", lambda: driver)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    printed = "\n".join(" ".join(line) for check in (machine.software, machine.accelerators) for line in check())
    for line in lines:
        assert line in printed, printed
