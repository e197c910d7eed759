"""What follows when a start of a job has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.errors import CRASHED, FAILED, LOST, STOPPED
from launch.restart import Decision, begin, decide, last_reason, note_path


def make_progress(run: Path, job: str, file: str) -> None:
    """Leave a sign of progress that is newer than the note of the job's start."""
    path = run / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    time = note_path(run, job).stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize("code", [0, FAILED])
def test_a_job_that_is_done_or_has_bad_input_does_not_start_again(tmp_path: Path, code: int) -> None:
    begin(tmp_path, "1")
    assert decide(tmp_path, "1", code, 3).code == code


@pytest.mark.parametrize("code", [STOPPED, LOST, CRASHED, 137])
def test_anything_else_starts_again_while_there_is_progress(tmp_path: Path, code: int) -> None:
    for step in range(6):
        begin(tmp_path, "1")
        make_progress(tmp_path, "1", f"pretrain/checkpoints/step-{step}")
        assert decide(tmp_path, "1", code, 1).code == STOPPED
    for path in (tmp_path / "pretrain" / "checkpoints").iterdir():
        os.utime(path, (0, 0))
    decisions = []
    for _ in range(2):
        begin(tmp_path, "1")
        decisions.append(decide(tmp_path, "1", code, 2))
    assert [decision.code for decision in decisions] == [STOPPED, CRASHED]
    assert "2 starts in a row made no progress" in decisions[1].reason
    assert last_reason(tmp_path, "1") == decisions[1].reason


def test_each_job_counts_its_own_starts(tmp_path: Path) -> None:
    begin(tmp_path, "1")
    assert decide(tmp_path, "1", 137, 1).code == CRASHED
    begin(tmp_path, "other")
    assert last_reason(tmp_path, "other") == "", "it is running"
    assert decide(tmp_path, "other", 137, 2).code == STOPPED


def test_a_stage_that_has_only_begun_is_no_progress(tmp_path: Path) -> None:
    begin(tmp_path, "1")
    make_progress(tmp_path, "1", "extract/inputs.json")
    assert decide(tmp_path, "1", 137, 1).code == CRASHED


@pytest.mark.parametrize(
    "file",
    ["evaluate/rows/mean.json", "evaluate/parts/mean.2.npz", "networks/triplet_network/checkpoints/step-1",
     "networks/finetune_network/seed0-draw0-shots1/checkpoints/step-1", "networks/triplet_network/done.json",
     "networks/finetune_network/seed0-draw0-shots1/done.json"],
)  # fmt: skip
def test_rows_draws_and_networks_are_progress(tmp_path: Path, file: str) -> None:
    begin(tmp_path, "1")
    make_progress(tmp_path, "1", "evaluate/parts/1-of-3/heartbeat.json")
    assert decide(tmp_path, "1", 137, 1).code == CRASHED
    begin(tmp_path, "1")
    make_progress(tmp_path, "1", file)
    assert decide(tmp_path, "1", 137, 1).code == STOPPED


def test_packing_is_progress(tmp_path: Path) -> None:
    for number in range(3):
        begin(tmp_path, "1")
        make_progress(tmp_path, "1", f"shards/{number}.tar")
        assert decide(tmp_path, "1", 137, 1, tmp_path / "shards").code == STOPPED


def test_a_job_script_asks_by_the_command_line(tmp_path: Path) -> None:
    def ask(*words: object) -> tuple[int, str]:
        line = [sys.executable, "-m", "launch.restart", *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        return done.returncode, done.stderr

    assert ask("begin", tmp_path, "7_1") == (0, "")
    make_progress(tmp_path, "7_1", "shards/0.tar")
    code, said = ask("decide", tmp_path, "7_1", 137, 1, tmp_path / "shards")
    assert (code, said) == (STOPPED, "dist-train: job 7_1: a rank died (exit code 137); starting again\n")
    code, said = ask("cancelled", tmp_path, "7_1")
    assert code == 0 and last_reason(tmp_path, "7_1") in said and "cancelled" in said
    assert decide(tmp_path, "7_1", 0, 1) == Decision(0, "done")
