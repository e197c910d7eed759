"""Chains of jobs on a real SLURM of two nodes: whatever happens to them, the table is the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from chain import TOOL, Chain, output
from filelock import FileLock
from fixtures.processes import WarmPython

from dist_train.config import BackboneConfig, Config, DataConfig, PretrainConfig, to_dict
from dist_train.data.activations import load
from dist_train.training import checkpoint, metrics
from launch.cli.main import main
from launch.slurm import jobs, scheduler

Make = Callable[..., Chain]
SLOW = {
    "pretrain": {"epochs": 16, "checkpoint_every": 10, "log_every": 2},
    "learn": {"steps": 600, "checkpoint_every": 50, "log_every": 10},
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython) -> dict[str, Any]:
    """Hold runs under torchrun by the text of their configuration; each is made once."""
    return {"folder": tmp_path_factory.mktemp("reference"), "python": warm_python}


def under_torchrun(config: Config, reference: dict[str, Any]) -> Path:
    key = json.dumps([to_dict(part) for part in (config.pretrain, config.networks, config.learn, config.evaluate)])
    if key not in reference:
        config = replace(config, runs=reference["folder"], name=f"run-{len(reference)}")
        path = reference["folder"] / f"{config.name}.yaml"
        path.write_text(yaml.safe_dump(to_dict(config)))
        warm: WarmPython = reference["python"]
        words = ["--standalone", "--nproc-per-node", "2", "-m", "dist_train", "run", "--config", str(path)]
        command = [warm.python, "-m", "torch.distributed.run", *words]
        finished = subprocess.run(command, capture_output=True, text=True, env=warm.environment())
        assert finished.returncode == 0, finished.stderr[-3000:]
        reference[key] = config.run_dir
    run: Path = reference[key]
    return run


def same(chain: Chain, reference: dict[str, Any]) -> None:
    """Assert that table and curves are the same as under torchrun."""
    whole = under_torchrun(chain.config, reference)
    assert chain.table() == json.loads((whole / "evaluate" / "results.json").read_text())["methods"]
    for part in ("pretrain", "learn/phi1", "learn/phi2", "learn/phi2star"):
        assert metrics.reproducible(chain.rows(part)) == metrics.reproducible(
            metrics.read_metrics(whole / part / "metrics.jsonl")
        )


def test_a_chain_over_two_nodes_equals_torchrun(make_chain: Make, reference: dict[str, Any], capsys: Any) -> None:
    chain = make_chain(real=True)
    assert chain.submit() == 0
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()[:4]] == ["pretrain", "extract", "learn", "evaluate"]
    assert chain.submit() == 1  # while it is on its way
    assert "are queued or running" in capsys.readouterr().err
    chain.wait(lambda: chain.finished())
    same(chain, reference)
    assert "2 ranks on n1, n2" in (jobs.folder(chain.run) / f"{chain.job('pretrain')}_0_log.out").read_text()
    # It is done: read its status and logs, and submit it again.
    assert main(["status", str(chain.run)]) == 0
    printed = capsys.readouterr().out
    assert f"job {chain.job('pretrain')} pretrain: COMPLETED" in printed and "  finished " in printed
    for number in ("--rank", "--member"):
        assert main(["logs", str(chain.run), number, "9"]) == 1
    printed = capsys.readouterr().err
    assert "--rank 9: this run has ranks 0..1" in printed and "--member 9: this run has member 0 only" in printed
    assert main(["logs", str(chain.run), "--stage", "pretrain", "--rank", "1"]) == 0
    assert "Job completed successfully" in capsys.readouterr().out
    assert main(["cancel", str(chain.run)]) == 1
    assert "no job of it is queued or running" in capsys.readouterr().err
    before = chain.table()
    chain.wait(lambda: not jobs.active(chain.run))
    assert chain.submit() == 0
    assert "all stages are done; nothing to submit" in capsys.readouterr().out
    assert chain.table() == before and chain.state("evaluate") == "COMPLETED"


def usr2(chain: Chain, stage: str) -> None:
    output("scancel", "--signal=USR2", chain.job(stage))


def requeue(chain: Chain, stage: str) -> None:
    output("scontrol", "requeue", chain.job(stage))


def killed_rank(chain: Chain, stage: str) -> None:
    chain.kill(stage, 1)


def preempted(chain: Chain, stage: str) -> None:
    """Submit a job to a partition of higher priority, which takes both nodes for a moment."""
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
    events: dict[str, Any], make_chain: Make, reference: dict[str, Any]
) -> None:
    chain = make_chain(**SLOW)
    assert chain.submit() == 0
    for stage, event in events.items():
        at_work = {
            "pretrain": lambda: len(chain.rows("pretrain")) > 5,
            "extract": lambda: (chain.run / "extract" / "inputs.json").is_file(),
            "learn": lambda: len(chain.rows("learn/phi1")) > 3,
        }[stage]
        chain.wait(at_work)
        event(chain, stage)
        chain.wait(lambda stage=stage: chain.restarts(stage) >= 1)  # type: ignore[misc]
    chain.wait(lambda: chain.finished(), 600)
    same(chain, reference)


@pytest.mark.long
def test_a_vit_that_is_trained_further_is_preempted_and_ends_in_the_same_table(
    make_chain: Make, reference: dict[str, Any], tmp_path: Path
) -> None:
    weights = tmp_path / "vit_tiny.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224", img_size=48).state_dict(), weights)
    init = BackboneConfig(source="timm:vit_tiny_patch16_224", weights=weights, size=48)
    data = {"train_size": 48, "eval_resize": DataConfig().eval_resize, "eval_size": DataConfig().eval_size}
    options = {"model": PretrainConfig().model, "init": init, "freeze": "blocks.5", "layer_decay": 0.7, "lr": 0.01}
    chain = make_chain(data=data, pretrain={**SLOW["pretrain"], **options})
    assert chain.submit() == 0
    chain.wait(lambda: len(chain.rows("pretrain")) > 5)
    preempted(chain, "pretrain")
    chain.wait(lambda: chain.restarts("pretrain") >= 1)
    chain.wait(lambda: chain.finished(), 600)
    same(chain, reference)
    whole = under_torchrun(chain.config, reference)
    one, other = (checkpoint.load(run / "pretrain" / "final").tensors["model"] for run in (chain.run, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_networks_of_rows_are_preempted_and_end_in_the_same_table(
    make_chain: Make, reference: dict[str, Any], capsys: Any
) -> None:
    """The stage ``networks`` is stopped in the triplet network's training, then in that of a draw's network."""
    networks = {"triplet_epochs": 60, "finetune_epochs": 60, "global_batch": 24, "precision": "fp32", "log_every": 1,
                "checkpoint_every": 20, "draws": 1}  # fmt: skip
    rows = ["mean", "triplet_network", "triplet_network1", "finetune_network"]
    chain = make_chain(networks=networks, evaluate={"methods": rows, "shots": [1, 2]})
    assert chain.submit() == 0
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()[:5]] == [
        "pretrain", "extract", "networks", "learn", "evaluate",
    ]  # fmt: skip
    trainings = ["networks/triplet_network", "networks/finetune_network/seed0-draw0-shots1"]
    for count, (training, event) in enumerate(zip(trainings, (usr2, preempted), strict=True), start=1):
        chain.wait(lambda training=training: len(chain.rows(training)) > 5)  # type: ignore[misc]
        event(chain, "networks")
        chain.wait(lambda count=count: chain.restarts("networks") >= count)  # type: ignore[misc]
    chain.wait(lambda: chain.finished(), 600)
    assert set(chain.table()) == set(rows)
    same(chain, reference)
    whole = under_torchrun(chain.config, reference)
    for training in (*trainings, "networks/finetune_network/seed0-draw0-shots2"):
        one, other = (metrics.read_metrics(run / training / "metrics.jsonl") for run in (chain.run, whole))
        assert metrics.reproducible(one) == metrics.reproducible(other)
        assert (chain.run / training / "base_val.f16.npy").read_bytes() == (
            whole / training / "base_val.f16.npy"
        ).read_bytes()
    assert main(["status", str(chain.run)]) == 0
    assert "networks  done" in capsys.readouterr().out


@pytest.mark.long
def test_two_nodes_share_the_draws_of_a_table_and_are_preempted_in_it(make_chain: Make, tmp_path: Path) -> None:
    """Rows that were complete stay; the table is that of one process."""
    steps = {"finetune_steps": 100.0, "logistic_steps": 100.0}
    options = {"methods": ["nn", "mean", "finetune", "ridge", "logistic"], "draws": 60, "shots": [1, 2, 5]}
    chain = make_chain(evaluate={**options, "options": steps})
    assert chain.submit() == 0
    rows = chain.run / "evaluate" / "rows"
    chain.wait(lambda: (rows / "mean.json").is_file())
    kept = {name: (rows / f"{name}.json").stat().st_mtime_ns for name in ("nn", "mean")}
    preempted(chain, "evaluate")
    chain.wait(lambda: chain.restarts("evaluate") >= 1)
    assert not (rows / "logistic.json").exists(), "preempted too late"
    chain.wait(lambda: chain.finished())
    assert kept == {name: (rows / f"{name}.json").stat().st_mtime_ns for name in kept}
    log = (jobs.folder(chain.run) / f"{chain.job('evaluate')}_0_log.out").read_text()
    assert log.count("2 ranks on n1, n2") == 2, log

    one = table_of_one_process(chain, tmp_path)
    assert chain.table() == one and len(one["finetune"]["5"]["novel_top1"]["draws"]) == 60


def table_of_one_process(chain: Chain, folder: Path) -> dict[str, Any]:
    """Return the table that one process makes of the chain's activations and predictors."""
    alone = replace(chain.config, runs=folder / "alone")
    shutil.copytree(chain.run, alone.run_dir, ignore=shutil.ignore_patterns("evaluate", "launch", "sweep"))
    path = folder / "alone.yaml"
    path.write_text(yaml.safe_dump(to_dict(alone)))
    assert main(["evaluate", "--config", str(path)]) == 0
    table: dict[str, Any] = json.loads((alone.run_dir / "evaluate" / "results.json").read_text())["methods"]
    return table


def spread(chain: Chain, elements: int, folder: Path) -> None:
    """Spread the chain's evaluation over an array."""
    profile = yaml.safe_load(Path(chain.cluster).read_text())
    path = folder / "array.yaml"
    path.write_text(yaml.safe_dump({**profile, "stages": {"evaluate": {"nodes": 1, "array": elements}}}))
    chain.cluster = str(path)


@pytest.mark.long
def test_an_array_finds_the_table_of_one_process_after_a_preemption_and_a_failure(
    make_chain: Make, tmp_path: Path, capsys: Any, with_backbone: Callable[..., Config]
) -> None:
    """Of three elements one fails, and the others are preempted; submitted again, the third finds what is missing."""
    steps = {"finetune_steps": 300.0, "logistic_steps": 100.0}  # time to be preempted before the last row
    options = {"methods": ["nn", "mean", "finetune", "nn_oracle", "phi1", "logistic"], "draws": 60, "shots": [1, 2, 5]}
    chain = make_chain(evaluate={**options, "options": steps})
    with_backbone(chain.config, True)
    spread(chain, 3, tmp_path)
    parts = chain.run / "evaluate" / "parts"
    (parts / "2-of-3").mkdir(parents=True)
    with FileLock(parts / "2-of-3" / ".lock"):
        assert chain.submit() == 0
        assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:3]] == [
            "learn",
            "evaluate",
            "merge",
        ]
        chain.wait(lambda: (parts / "mean.0.npz").is_file() and (parts / "mean.1.npz").is_file())
        preempted(chain, "evaluate")
        chain.wait(lambda: chain.restarts("evaluate", "_1") >= 1)
        assert not (parts / "logistic.1.npz").exists(), "preempted too late"
        chain.wait(lambda: not jobs.active(chain.run))
    array = chain.job("evaluate")
    states = {name: state.state for name, state in scheduler.states([array]).items()}
    assert states == {f"{array}_0": "COMPLETED", f"{array}_1": "COMPLETED", f"{array}_2": "FAILED"}
    assert chain.state("merge") == "CANCELLED" and not (chain.run / "evaluate" / "results.json").exists()
    assert main(["status", str(chain.run)]) == 0
    printed = capsys.readouterr().out
    assert f"failed: {array}_2; the end of {jobs.folder(chain.run)}/{array}_2_0_log.out" in printed, printed
    assert "2-of-3: another process is at work on this share" in printed, printed
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert chain.submit() == 0
    chain.wait(lambda: (parts / "logistic.2.npz").is_file() or chain.finished())
    found = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert {name: time for name, time in found.items() if name in kept} == kept or chain.finished()
    chain.wait(lambda: chain.finished())
    assert chain.table() == table_of_one_process(chain, tmp_path)
    assert not parts.exists() and len(chain.table()["finetune"]["5"]["novel_top1"]["draws"]) == 60
    chain.wait(lambda: not jobs.active(chain.run))
    assert chain.submit() == 0
    assert "all stages are done; nothing to submit" in capsys.readouterr().out


@pytest.mark.long
def test_the_tables_of_a_sweep_by_arrays(
    make_chain: Make, tmp_path: Path, with_backbone: Callable[..., Config]
) -> None:
    """A member whose predictor fails does not keep the other from its table."""
    chain = make_chain(evaluate={"methods": ["mean", "phi1"]})
    with_backbone(chain.config, True)
    spread(chain, 2, tmp_path)
    broken = chain.run / "sweep" / "learn.seed=1" / "learn"
    broken.parent.mkdir(parents=True)
    broken.write_text("no folder")
    assert chain.submit("--sweep", "learn.seed=0,1") == 0
    chain.wait(lambda: not jobs.active(chain.run))
    text = (chain.run / "sweep" / "table.md").read_text()
    assert "learn.seed=0 | φ1 | 1 |" in text and "Without results: learn.seed=1" in text
    alone = json.loads((chain.run / "sweep" / "learn.seed=0" / "evaluate" / "results.json").read_text())
    chain.config = replace(chain.config, name="learn.seed=0", runs=chain.run / "sweep")
    assert alone["methods"] == table_of_one_process(chain, tmp_path)


@pytest.mark.long
def test_a_reached_time_limit_and_a_lost_node(make_chain: Make, reference: dict[str, Any]) -> None:
    """A start of one minute is too short for the pretraining; later the second node's daemon dies."""
    learn = {**SLOW["learn"], "steps": 2000}  # longer than SLURM takes to miss a node
    chain = make_chain(real=True, pretrain={"epochs": 130, "checkpoint_every": 50, "log_every": 10}, learn=learn)
    try:
        assert chain.submit("--minutes", "1") == 0
        chain.wait(lambda: chain.finished("pretrain"), 400)
        assert chain.restarts("pretrain") >= 1
        chain.wait(lambda: len(chain.rows("learn/phi1")) > 3)
        output("pkill", "-9", "-f", "slurmd -N n2")
        chain.wait(lambda: chain.restarts("learn") >= 1, 120)
    finally:
        subprocess.run([str(TOOL), "up"], check=True, capture_output=True)
    chain.wait(lambda: chain.finished(), 600)
    same(chain, reference)


@pytest.mark.long
def test_a_sweep_is_an_array_with_a_table(make_chain: Make) -> None:
    """The last member has the array's own job id. It is preempted, and restarts alone."""
    chain = make_chain(learn=SLOW["learn"])
    assert chain.submit("--sweep", "learn.p_mean=0.3,0.5,0.9") == 0
    last = chain.run / "sweep" / "learn.p_mean=0.9"
    chain.wait(lambda: len(metrics.read_metrics(last / "learn" / "phi1" / "metrics.jsonl")) > 3)
    output("scancel", "--signal=USR2", f"{chain.job('learn')}_2")
    chain.wait(lambda: chain.restarts("learn", "_2") == 1)
    chain.wait(lambda: (chain.run / "sweep" / "table.md").is_file() or not jobs.active(chain.run), 600)
    text = (chain.run / "sweep" / "table.md").read_text()
    assert "learn.p_mean=0.3 | φ2 | 1 |" in text and "learn.p_mean=0.9" in text and "Without results" not in text
    assert [chain.restarts("learn", member) for member in ("_0", "_1", "_2")] == [0, 0, 1]
    a, b = (
        json.loads((chain.run / "sweep" / f"learn.p_mean={p}" / "evaluate" / "results.json").read_text())
        for p in ("0.3", "0.9")
    )
    assert a["methods"]["mean"] == b["methods"]["mean"] and a["methods"]["phi2"] != b["methods"]["phi2"]


def test_a_failed_chain_says_why_and_continues_when_submitted_again(
    make_chain: Make, tmp_path: Path, capsys: Any
) -> None:
    chain = make_chain()
    own = shutil.copytree(chain.config.data.shards, tmp_path / "own-shards")  # other tests use the shared shards now
    chain.config = replace(chain.config, data=replace(chain.config.data, shards=str(own)))
    shard = sorted((own / "train").glob("*.tar"))[0]
    assert chain.submit() == 0
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:100])  # cut while the job waits and starts
        chain.wait(lambda: not jobs.active(chain.run))
    finally:
        shard.write_bytes(content)
    assert (chain.state("pretrain"), chain.state("extract")) == ("FAILED", "CANCELLED")
    capsys.readouterr()
    assert main(["status", str(chain.run)]) == 0
    printed = capsys.readouterr().out
    assert "died of: rank " in printed and shard.name in printed
    assert chain.submit() == 0
    chain.wait(lambda: chain.finished())


def test_watched_and_cancelled_is_not_started_again(
    make_chain: Make, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, warm_python: WarmPython
) -> None:
    chain = make_chain(pretrain={**SLOW["pretrain"], "epochs": 200})
    assert chain.submit() == 0

    def said(*wanted: str) -> bool:
        capsys.readouterr()
        assert main(["status", str(chain.run)]) == 0
        printed = capsys.readouterr().out
        return all(text in printed for text in wanted)

    chain.wait(lambda: len(chain.rows("pretrain")) > 3)
    following = warm_python.start("logs", str(chain.run), "-f", stdout=subprocess.PIPE)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squeue").symlink_to(str(shutil.which("squeue")))
    for path, wanted in (
        (str(tmp_path / "bin"), "pretrain: RUNNING on n[1-2]"),
        ("/nonexistent", "state unknown: SLURM does not answer (squeue: "),
    ):
        with monkeypatch.context() as without:  # sacct, then squeue too
            without.setenv("PATH", path)
            chain.wait(lambda wanted=wanted: said(wanted, "checkpoint step-", "now: pretrain"))  # type: ignore[misc]
    assert main(["cancel", str(chain.run)]) == 0
    chain.wait(lambda: not jobs.active(chain.run))
    followed, _ = following.communicate(timeout=60)  # ends with the job
    assert "2 ranks on n1, n2" in followed and "saved at step" in followed
    assert checkpoint.step_checkpoints(chain.run / "pretrain" / "checkpoints"), "what ran saved first"
    time.sleep(3)
    assert not jobs.active(chain.run) and chain.state("pretrain") == "CANCELLED"
    capsys.readouterr()
    assert main(["status", str(chain.run)]) == 0
    assert "[last start: cancelled; " in capsys.readouterr().out


def test_code_edited_while_a_job_waits_does_not_change_it(make_chain: Make, tmp_path: Path, capsys: Any) -> None:
    """The snapshot runs, although the job starts in the folder of the checkout; here with a trained network of timm,
    which the first job takes in, and two nodes of the second extract with."""
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), weights)
    untrained = {key: getattr(DataConfig(), key) for key in ("train_size", "eval_resize", "eval_size")}
    chain = make_chain(real=True, data=untrained)
    backbone = BackboneConfig(source="timm:resnet10t", weights=weights, size=64)
    chain.config = replace(chain.config, pretrain=PretrainConfig(), backbone=backbone)
    assert chain.submit("--stages", "pretrain,extract") == 0
    (code,) = (chain.run / "launch").glob("code-*")
    (code / "COMMIT").write_text("of-the-snapshot\n")  # the checkout has another commit
    chain.wait(lambda: chain.finished("extract"))
    provenance = json.loads((chain.run / "provenance.json").read_text())
    assert provenance["commit"] == "of-the-snapshot" and provenance["backbone"]["file"] == "weights.pth"
    assert load(chain.run / "extract", "base_train").rows.shape == (120, 512)


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
def test_what_slurm_refuses_is_one_line(options: list[str], wanted: str, make_chain: Make, capsys: Any) -> None:
    chain = make_chain()
    assert chain.submit(*options) == 1
    error = capsys.readouterr().err
    assert wanted in error and error.count("\n") == 1
    assert not jobs.active(chain.run) and not chain.run.exists()


@pytest.mark.long
def test_too_short_a_time_limit_is_given_up(make_chain: Make, tmp_path: Path, capsys: Any) -> None:
    """Python takes longer to start than the time limit of the job, so no start makes progress."""
    slow = "import os, time\n'SLURM_STEP_NUM_TASKS' in os.environ and time.sleep(120)\n"
    (tmp_path / "sitecustomize.py").write_text(slow)  # Python imports it at its start; it sleeps in the ranks only
    profile = yaml.safe_load((Path(__file__).parents[2] / "configs" / "clusters" / "dev.yaml").read_text())
    profile |= {"setup": [f"export PYTHONPATH={tmp_path}"], "starts": 1}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(profile))
    chain = make_chain()
    assert chain.submit("--cluster", str(tmp_path / "site.yaml"), "--minutes", "1") == 0
    chain.wait(lambda: not jobs.active(chain.run))
    capsys.readouterr()
    assert main(["status", str(chain.run)]) == 0
    printed = capsys.readouterr().out
    assert "made no progress (too short a time limit?)" in printed, printed


def test_without_sbatch(make_chain: Make, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = make_chain()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert chain.submit() == 1
    assert "no sbatch on this machine" in capsys.readouterr().err
    assert not chain.run.exists()


def test_doctor_on_two_nodes(cluster: None, tmp_path: Path, capsys: Any) -> None:
    assert main(["doctor", "--runs", str(tmp_path), "--cluster", "dev", "--wait", "2"]) == 0
    printed = capsys.readouterr().out
    for what in ("python", "dali", "slurm", "sacct", "all-reduce", "clocks"):
        assert what in printed, printed
    assert "between 2 ranks" in printed


def test_srun_needs_nothing_but_the_command(make_chain: Make) -> None:
    chain = make_chain()
    path = chain.run.parent / "plain.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(to_dict(chain.config)))
    finished = subprocess.run(["srun", "-p", "dev", "-N2", "-n2", sys.executable, "-m", "dist_train", "pretrain",
                           "--config", str(path)], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "2 ranks on" in finished.stderr


@pytest.mark.parametrize(
    ("site", "wanted"),
    [
        ({"setup": ["true", "nosuchcommand x"]}, "setup: nosuchcommand x: exit code 127; mend it in the profile"),
        ({"python": "/nonexistent/python"}, "/nonexistent/python: No such file or directory"),
        ({"sbatch": {"nosuchopt": "x"}}, "unrecognized option '--nosuchopt=x'"),
    ],
)
def test_an_error_of_a_profile_is_shown(
    site: dict[str, Any], wanted: str, make_chain: Make, tmp_path: Path, capsys: Any
) -> None:
    profile = yaml.safe_load((Path(__file__).parents[2] / "configs" / "clusters" / "dev.yaml").read_text())
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({**profile, **site}))
    chain = make_chain()
    code = chain.submit("--cluster", str(tmp_path / "site.yaml"), "--stages", "pretrain")
    if code:
        assert wanted in capsys.readouterr().err and not chain.run.exists(), "a refused submission leaves no run"
        return
    chain.wait(lambda: chain.state("pretrain") == "FAILED", 60)  # sacct hears of it a little later
    capsys.readouterr()
    assert main(["status", str(chain.run)]) == 0
    assert wanted in capsys.readouterr().out


def test_of_two_submissions_at_once_one_is_refused(make_chain: Make, warm_python: WarmPython) -> None:
    chain = make_chain()
    assert chain.submit("--dry-run") == 0  # writes the file
    words = ("launch", "slurm", "--cluster", chain.cluster, "--stages", "pretrain", "--config",
             str(chain.run.parent / f"{chain.run.name}.yaml"))  # fmt: skip
    both = [warm_python.start(*words, stderr=subprocess.PIPE) for _ in range(2)]
    printed = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], printed
    assert len(jobs.recorded(chain.run)) == 1


def test_a_rank_killed_before_it_met_the_others_is_started_again(make_chain: Make, capsys: Any) -> None:
    """Only srun notices it; rank 0 would wait for monitor.start_timeout."""
    chain = make_chain(real=True, monitor={"rank_timeout": 2})
    assert chain.submit("--stages", "pretrain") == 0
    chain.wait(lambda: 1 in chain.ranks("pretrain"))
    chain.kill("pretrain", 1)
    chain.wait(lambda: list((chain.run / "launch").glob("meet-*.json")))
    capsys.readouterr()
    assert main(["status", str(chain.run)]) == 0
    assert "waits for the other ranks" in capsys.readouterr().out
    chain.wait(lambda: chain.restarts("pretrain") == 1, 60)
    chain.wait(lambda: chain.finished("pretrain"))
