"""What follows a start that has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_train.errors import CRASHED, FAILED, LOST, STOPPED
from launch.grid.sweep import collect, first_stage, link, members
from launch.restart import again, begin, told
from launch.slurm.jobs import newest, record
from launch.slurm.snapshot import take


def test_done_and_bad_input_end_it(tmp_path: Path) -> None:
    begin(tmp_path, "1")
    assert again(tmp_path, "1", 0, 3)[0] == 0
    assert again(tmp_path, "1", FAILED, 3)[0] == FAILED


@pytest.mark.parametrize("code", [STOPPED, LOST, CRASHED, 137])
def test_anything_else_starts_again_while_there_is_progress(tmp_path: Path, code: int) -> None:
    for step in range(6):
        begin(tmp_path, "1")
        time.sleep(0.01)
        (tmp_path / "pretrain" / "checkpoints" / f"step-{step}").mkdir(parents=True)
        assert again(tmp_path, "1", code, 1)[0] == STOPPED
    results = []
    for _ in range(2):
        time.sleep(0.01)
        begin(tmp_path, "1")
        results.append(again(tmp_path, "1", code, 2))
    assert [result for result, _ in results] == [STOPPED, CRASHED]
    assert "2 start(s) in a row made no progress" in results[1][1]
    assert told(tmp_path, "1") == results[1][1]
    begin(tmp_path, "other")
    assert told(tmp_path, "other") == "", "it is running"
    assert again(tmp_path, "other", code, 2)[0] == STOPPED, "each job counts its own"


def test_packing_is_progress(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(3):
        begin(tmp_path, "1")
        time.sleep(0.01)
        (tmp_path / "shards" / f"{number}.tar").touch()
        assert again(tmp_path, "1", 137, 1, tmp_path / "shards")[0] == STOPPED


def test_a_snapshot_is_what_runs_later(tmp_path: Path) -> None:
    code = take(tmp_path)
    assert take(tmp_path) != code
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    told = subprocess.run(
        [sys.executable, "-c", "import dist_train, launch.cli.main; from dist_train.config import configs_dir\n"
         "from dist_train.runs.provenance import git_commit\n"
         "print(dist_train.__file__, launch.cli.main.__file__, configs_dir(), git_commit(), sep='\\n')"],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert all(line.startswith(str(code)) for line in told[:3])
    assert told[3] == (code / "COMMIT").read_text().strip() != ""


def test_points_of_a_sweep() -> None:
    found = members(["learn.p_mean=0.3,0.9", "evaluate.shots=[1,2],[1]"])
    assert len(found) == 4
    assert found["learn.p_mean=0.3,evaluate.shots=[1,2]"] == ["--learn.p_mean", "0.3", "--evaluate.shots", "[1,2]"]
    assert (
        first_stage(["evaluate.seed=1,2"]) == "evaluate" and first_stage(["evaluate.seed=1", "learn.lr=1"]) == "learn"
    )


def test_members_share_what_comes_before(tmp_path: Path) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "done.json").write_text("{}")
    for _ in range(2):  # again, as at a second submission
        where = link(tmp_path, ["learn.seed=1"], "learn")
    assert (where / "learn.seed=1" / "pretrain" / "done.json").is_file()
    assert not (where / "learn.seed=1" / "learn").exists()


def test_a_table_of_members_names_those_that_lack_results(tmp_path: Path) -> None:
    where = link(tmp_path, ["learn.seed=1", "learn.seed=2"], "learn")
    (where / "learn.seed=1" / "evaluate").mkdir()
    value = '{"mean": 12.345, "ci95": 0.5}'
    (where / "learn.seed=1" / "evaluate" / "results.json").write_text(
        f'{{"methods": {{"phi2": {{"1": {{"base_top1": {value}, "novel_top1": {value}, "harmonic": {value}}}}}}}}}'
    )
    text = collect(tmp_path)
    assert "| learn.seed=1 | φ2 | 1 | 12.35 ± 0.50 |" in text.replace("12.34", "12.35")
    assert "Without results: learn.seed=2" in text and (where / "table.md").read_text() == text
    (where / "learn.seed=2" / "evaluate").mkdir()  # of episodes
    (where / "learn.seed=2" / "evaluate" / "results.json").write_text(
        '{"methods": {"phi2": {"5": {"accuracy": {"mean": 60.5, "std": 9.0}}}}}'
    )
    assert "| learn.seed=2 | φ2 | 5 | – | – | – | 60.50 ± 9.00 |" in collect(tmp_path)


def test_the_newest_job_of_each_stage(tmp_path: Path) -> None:
    for stage, job in (("pretrain", "1"), ("extract", "2"), ("pretrain", "3")):
        record(tmp_path, stage, job, [], 1, 2)
    assert [(entry["stage"], entry["job"]) for entry in newest(tmp_path)] == [("extract", "2"), ("pretrain", "3")]
