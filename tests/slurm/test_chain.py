"""Chains of jobs on a real SLURM of two nodes: whatever happens to them, the table is the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from chain import TOOL, Chain, output

from dist_train.config import Config, to_dict
from dist_train.training import checkpoint, metrics
from launch.cli.main import main
from launch.slurm import jobs

Make = Callable[..., Chain]
SLOW = {
    "pretrain": {"epochs": 16, "checkpoint_every": 10, "log_every": 2},
    "learn": {"steps": 600, "checkpoint_every": 50, "log_every": 10},
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of runs under torchrun, by the configuration's text; each is made once."""
    return {"folder": tmp_path_factory.mktemp("reference")}


def under_torchrun(config: Config, reference: dict[str, Any]) -> Path:
    key = json.dumps([to_dict(config.pretrain), to_dict(config.learn)])
    if key not in reference:
        config = replace(config, runs=reference["folder"], name=f"run-{len(reference)}")
        path = reference["folder"] / f"{config.name}.yaml"
        path.write_text(yaml.safe_dump(to_dict(config)))
        command = [
            "torchrun",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "dist_train",
            "run",
            "--config",
            str(path),
        ]
        done = subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], capture_output=True,
                              text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        reference[key] = config.run_dir
    found: Path = reference[key]
    return found


def same(chain: Chain, reference: dict[str, Any]) -> None:
    """The same table, weights and curves as under torchrun."""
    whole = under_torchrun(chain.config, reference)
    assert chain.table() == json.loads((whole / "evaluate" / "results.json").read_text())["methods"]
    for part in ("pretrain", "learn/phi1", "learn/phi2", "learn/phi2star"):
        assert metrics.reproducible(chain.rows(part)) == metrics.reproducible(
            metrics.read_metrics(whole / part / "metrics.jsonl")
        )


def test_a_chain_over_two_nodes_equals_torchrun(chain: Make, reference: dict[str, Any], capsys: Any) -> None:
    one = chain()
    assert one.submit() == 0
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines()[:4]] == ["pretrain", "extract", "learn", "evaluate"]
    assert one.submit() == 1  # while it is on its way
    assert "are queued or running" in capsys.readouterr().err
    one.wait(lambda: one.finished())
    same(one, reference)
    assert "2 rank(s) on n1, n2" in (jobs.folder(one.run) / f"{one.job('pretrain')}_0_log.out").read_text()
    # done: watch, read, submit again
    assert main(["status", str(one.run)]) == 0
    told = capsys.readouterr().out
    assert f"job {one.job('pretrain')} pretrain: COMPLETED" in told and "  finished " in told
    for number in ("--rank", "--member"):
        assert main(["logs", str(one.run), number, "9"]) == 1
    told = capsys.readouterr().err
    assert "--rank 9: this run has ranks 0..1" in told and "--member 9: this run has member 0 only" in told
    assert main(["logs", str(one.run), "--stage", "pretrain", "--rank", "1"]) == 0
    assert "Job completed successfully" in capsys.readouterr().out
    assert main(["cancel", str(one.run)]) == 1
    assert "no job of it is queued or running" in capsys.readouterr().err
    before = one.table()
    one.wait(lambda: not jobs.active(one.run))
    assert one.submit() == 0
    assert "all stages are done; nothing to submit" in capsys.readouterr().out
    assert one.table() == before and one.state("evaluate") == "COMPLETED"


def usr2(one: Chain, stage: str) -> None:
    output("scancel", "--signal=USR2", one.job(stage))


def requeue(one: Chain, stage: str) -> None:
    output("scontrol", "requeue", one.job(stage))


def killed_rank(one: Chain, stage: str) -> None:
    one.kill(stage, 1)


def preempted(one: Chain, stage: str) -> None:
    """By a job of a partition of higher priority, which takes both nodes for a moment."""
    output("sbatch", "-p", "urgent", "-N2", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 2")


@pytest.mark.parametrize(
    "events",
    [
        {"pretrain": usr2, "extract": requeue, "learn": killed_rank},
        pytest.param({"pretrain": requeue, "extract": killed_rank, "learn": usr2}, marks=pytest.mark.long),
        pytest.param({"pretrain": killed_rank, "extract": usr2, "learn": requeue}, marks=pytest.mark.long),
        pytest.param({"pretrain": preempted, "learn": preempted}, marks=pytest.mark.long),
    ],
    ids=["usr2-requeue-killed", "requeue-killed-usr2", "killed-usr2-requeue", "preempted"],
)
def test_preempted_requeued_and_killed_ends_in_the_same_table(
    events: dict[str, Any], chain: Make, reference: dict[str, Any]
) -> None:
    one = chain(**SLOW)
    assert one.submit() == 0
    for stage, event in events.items():
        at_work = {
            "pretrain": lambda: len(one.rows("pretrain")) > 5,
            "extract": lambda: (one.run / "extract" / "inputs.json").is_file(),
            "learn": lambda: len(one.rows("learn/phi1")) > 3,
        }[stage]
        one.wait(at_work)
        event(one, stage)
        one.wait(lambda stage=stage: one.restarts(stage) >= 1)  # type: ignore[misc]
    one.wait(lambda: one.finished(), 600)
    same(one, reference)


@pytest.mark.long
def test_a_reached_time_limit_and_a_lost_node(chain: Make, reference: dict[str, Any]) -> None:
    """One minute a start is not enough for the pretraining; then the second node's daemon dies."""
    learn = {**SLOW["learn"], "steps": 2000}  # longer than SLURM takes to miss a node
    one = chain(pretrain={"epochs": 130, "checkpoint_every": 50, "log_every": 10}, learn=learn)
    try:
        assert one.submit("--minutes", "1") == 0
        one.wait(lambda: one.finished("pretrain"), 400)
        assert one.restarts("pretrain") >= 1
        one.wait(lambda: len(one.rows("learn/phi1")) > 3)
        output("pkill", "-9", "-f", "slurmd -N n2")
        one.wait(lambda: one.restarts("learn") >= 1, 120)
    finally:
        subprocess.run([str(TOOL), "up"], check=True, capture_output=True)
    one.wait(lambda: one.finished(), 600)
    same(one, reference)


@pytest.mark.long
def test_a_sweep_is_an_array_with_a_table(chain: Make) -> None:
    """Its last member has the array's own job id, and is preempted: that restarts it, and no other."""
    one = chain(learn=SLOW["learn"])
    assert one.submit("--sweep", "learn.p_mean=0.3,0.5,0.9") == 0
    last = one.run / "sweep" / "learn.p_mean=0.9"
    one.wait(lambda: len(metrics.read_metrics(last / "learn" / "phi1" / "metrics.jsonl")) > 3)
    output("scancel", "--signal=USR2", f"{one.job('learn')}_2")
    one.wait(lambda: one.restarts("learn", "_2") == 1)
    one.wait(lambda: (one.run / "sweep" / "table.md").is_file() or not jobs.active(one.run), 600)
    text = (one.run / "sweep" / "table.md").read_text()
    assert "learn.p_mean=0.3 | φ2 | 1 |" in text and "learn.p_mean=0.9" in text and "Without results" not in text
    assert [one.restarts("learn", member) for member in ("_0", "_1", "_2")] == [0, 0, 1]
    a, b = (
        json.loads((one.run / "sweep" / f"learn.p_mean={p}" / "evaluate" / "results.json").read_text())
        for p in ("0.3", "0.9")
    )
    assert a["methods"]["mean"] == b["methods"]["mean"] and a["methods"]["phi2"] != b["methods"]["phi2"]


def test_a_failed_chain_says_why_and_continues_when_submitted_again(chain: Make, capsys: Any) -> None:
    one = chain()
    shard = sorted((Path(one.config.data.shards) / "train").glob("*.tar"))[0]
    assert one.submit() == 0
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:100])  # cut while the job waits and starts
        one.wait(lambda: not jobs.active(one.run))
    finally:
        shard.write_bytes(content)
    assert (one.state("pretrain"), one.state("extract")) == ("FAILED", "CANCELLED")
    capsys.readouterr()
    assert main(["status", str(one.run)]) == 0
    told = capsys.readouterr().out
    assert "died of: rank " in told and shard.name in told
    assert one.submit() == 0
    one.wait(lambda: one.finished())


def test_watched_and_cancelled_is_not_started_again(
    chain: Make, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = chain(pretrain={**SLOW["pretrain"], "epochs": 200})
    assert one.submit() == 0

    def said(*wanted: str) -> bool:
        capsys.readouterr()
        assert main(["status", str(one.run)]) == 0
        told = capsys.readouterr().out
        return all(text in told for text in wanted)

    one.wait(lambda: len(one.rows("pretrain")) > 3)
    command = [sys.executable, "-m", "dist_train", "logs", str(one.run), "-f"]
    following = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squeue").symlink_to(str(shutil.which("squeue")))
    for path, wanted in (
        (str(tmp_path / "bin"), "pretrain: RUNNING on n[1-2]"),
        ("/nonexistent", "state unknown: SLURM does not answer (squeue: "),
    ):
        with monkeypatch.context() as without:  # sacct, then squeue too
            without.setenv("PATH", path)
            one.wait(lambda wanted=wanted: said(wanted, "checkpoint step-", "now: pretrain"))  # type: ignore[misc]
    assert main(["cancel", str(one.run)]) == 0
    one.wait(lambda: not jobs.active(one.run))
    followed, _ = following.communicate(timeout=60)  # ends with the job
    assert "2 rank(s) on n1, n2" in followed and "saved at step" in followed
    assert checkpoint.step_checkpoints(one.run / "pretrain" / "checkpoints"), "what ran saved first"
    time.sleep(3)
    assert not jobs.active(one.run) and one.state("pretrain") == "CANCELLED"
    capsys.readouterr()
    assert main(["status", str(one.run)]) == 0
    assert "[last start: cancelled; " in capsys.readouterr().out


def test_code_edited_while_a_job_waits_does_not_change_it(chain: Make, tmp_path: Path, capsys: Any) -> None:
    """The snapshot runs, though the job starts in the folder of the checkout."""
    one = chain()
    assert one.submit("--stages", "pretrain") == 0
    (code,) = (one.run / "launch").glob("code-*")
    (code / "COMMIT").write_text("of-the-snapshot\n")  # only the snapshot says this
    one.wait(lambda: one.finished("pretrain"))
    assert json.loads((one.run / "provenance.json").read_text())["commit"] == "of-the-snapshot"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--partition", "nowhere"], "sbatch refused pretrain: "),
        (["--nodes", "8"], "sbatch refused pretrain: "),
        (["--minutes", "100000"], "sbatch refused pretrain: "),
        (["--tasks_per_node", "5"], "pretrain.global_batch"),
        (["--runs", "/proc/runs"], "/proc/runs"),
    ],
)
def test_what_slurm_refuses_is_one_line(options: list[str], wanted: str, chain: Make, capsys: Any) -> None:
    one = chain()
    assert one.submit(*options) == 1
    error = capsys.readouterr().err
    assert wanted in error and error.count("\n") == 1
    assert not jobs.active(one.run)


@pytest.mark.long
def test_too_short_a_time_limit_is_given_up(chain: Make, tmp_path: Path, capsys: Any) -> None:
    """Python takes longer to start than the job has: no start gets anywhere."""
    slow = "import os, time\n'SLURM_STEP_NUM_TASKS' in os.environ and time.sleep(120)\n"
    (tmp_path / "sitecustomize.py").write_text(slow)  # Python runs it first; here in the ranks alone
    profile = yaml.safe_load((Path(__file__).parents[2] / "configs" / "clusters" / "dev.yaml").read_text())
    profile |= {"setup": [f"export PYTHONPATH={tmp_path}"], "starts": 1}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(profile))
    one = chain()
    assert one.submit("--cluster", str(tmp_path / "site.yaml"), "--minutes", "1") == 0
    one.wait(lambda: not jobs.active(one.run))
    capsys.readouterr()
    assert main(["status", str(one.run)]) == 0
    told = capsys.readouterr().out
    assert "made no progress (too short a time limit?)" in told, told


def test_without_sbatch(chain: Make, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = chain()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert one.submit() == 1
    assert "no sbatch on this machine" in capsys.readouterr().err


def test_doctor_on_two_nodes(cluster: None, tmp_path: Path, capsys: Any) -> None:
    assert main(["doctor", "--runs", str(tmp_path), "--cluster", "dev", "--wait", "2"]) == 0
    told = capsys.readouterr().out
    for what in ("python", "dali", "slurm", "sacct", "all-reduce", "clocks"):
        assert what in told, told
    assert "between 2 rank(s)" in told


def test_srun_needs_nothing_but_the_command(chain: Make) -> None:
    one = chain()
    path = one.run.parent / "plain.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(to_dict(one.config)))
    done = subprocess.run(["srun", "-p", "dev", "-N2", "-n2", sys.executable, "-m", "dist_train", "pretrain",
                           "--config", str(path)], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 rank(s) on" in done.stderr


@pytest.mark.parametrize(
    ("site", "wanted"),
    [
        ({"setup": ["true", "nosuchcommand x"]}, "setup: nosuchcommand x: exit code 127; mend it in the profile"),
        ({"python": "/nonexistent/python"}, "/nonexistent/python: No such file or directory"),
        ({"sbatch": {"nosuchopt": "x"}}, "unrecognized option '--nosuchopt=x'"),
    ],
)
def test_what_is_wrong_with_a_profile_is_told(
    site: dict[str, Any], wanted: str, chain: Make, tmp_path: Path, capsys: Any
) -> None:
    profile = yaml.safe_load((Path(__file__).parents[2] / "configs" / "clusters" / "dev.yaml").read_text())
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({**profile, **site}))
    one = chain()
    code = one.submit("--cluster", str(tmp_path / "site.yaml"), "--stages", "pretrain")
    if code:
        assert wanted in capsys.readouterr().err and not one.run.exists(), "a refused submission leaves no run"
        return
    one.wait(lambda: one.state("pretrain") == "FAILED", 60)  # sacct hears of it a little later
    capsys.readouterr()
    assert main(["status", str(one.run)]) == 0
    assert wanted in capsys.readouterr().out


def test_of_two_submissions_at_once_one_is_refused(chain: Make) -> None:
    one = chain()
    assert one.submit("--dry-run") == 0  # writes the file
    command = [sys.executable, "-m", "dist_train", "launch", "slurm", "--cluster", "dev", "--stages", "pretrain",
               "--config", str(one.run.parent / f"{one.run.name}.yaml")]  # fmt: skip
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], told
    assert len(jobs.recorded(one.run)) == 1


def test_a_rank_killed_before_it_met_the_others_is_started_again(chain: Make, capsys: Any) -> None:
    """Nobody but srun can know of it; rank 0 would wait for monitor.start_timeout."""
    one = chain(monitor={"rank_timeout": 2})
    assert one.submit("--stages", "pretrain") == 0
    one.wait(lambda: 1 in one.ranks("pretrain"))
    one.kill("pretrain", 1)
    one.wait(lambda: list((one.run / "launch").glob("meet-*.json")))
    capsys.readouterr()
    assert main(["status", str(one.run)]) == 0
    assert "waits for the other ranks" in capsys.readouterr().out
    one.wait(lambda: one.restarts("pretrain") == 1, 60)
    one.wait(lambda: one.finished("pretrain"))
