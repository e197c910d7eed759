"""What is refused before anything is submitted, and a SLURM that does not answer, with stubs for its programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock

from dist_train.config import Config, DrawConfig, PackConfig, to_dict
from dist_train.data.splits import draw_split, save_split
from dist_train.runs.inputs import stage_inputs
from dist_train.runs.run import open_run
from dist_train.stages.share import Share
from launch import restart
from launch.cli.main import main
from launch.slurm import jobs, logs
from launch.slurm.jobs import Job, newest, record
from launch.slurm.scheduler import NoAnswer
from launch.slurm.snapshot import take_snapshot
from launch.status import show


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return ``stubs(squeue="exit 1")``, which puts shell scripts in the place of SLURM's programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)

    def make(**programs: str) -> None:
        for name, text in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")

    return make


@pytest.fixture
def submit(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return ``submit(*options, **changes)``, which submits ``config`` and returns exit code, stdout and stderr."""

    def run(*options: str, **changes: object) -> tuple[int, str, str]:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(to_dict(replace(config, **changes))))
        capsys.readouterr()
        code = main(["launch", "slurm", "--config", str(tmp_path / "run.yaml"), "--cluster", "dev", *options])
        return code, *capsys.readouterr()

    return run


Submit = Callable[..., tuple[int, str, str]]
Stubs = Callable[..., None]


def test_no_answer_does_not_mean_no_jobs(
    stubs: Stubs, submit: Submit, config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs(squeue="echo squeue: error: Unable to contact slurm controller >&2; exit 1", sacct="exit 1")
    record(config.run_dir, Job("pretrain", "12", ranks=2))
    (config.run_dir / "launch" / "config.yaml").write_text("{}")
    code, _, error = submit()
    assert code == 1 and "SLURM does not answer (squeue: error: Unable to contact" in error
    assert main(["cancel", str(config.run_dir)]) == 1
    assert "nothing was cancelled; its jobs: scancel 12" in capsys.readouterr().err
    assert main(["status", str(config.run_dir)]) == 0
    assert "job 12 pretrain: state unknown: SLURM does not answer (squeue: " in capsys.readouterr().out

    jobs.folder(config.run_dir).mkdir()
    (jobs.folder(config.run_dir) / "12_0_log.out").write_text("at work\n")
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if sum(slept) > 25:
            raise KeyboardInterrupt

    # The name in logs alone: subprocess waits for squeue by the same time.sleep.
    monkeypatch.setattr(logs, "time", SimpleNamespace(sleep=sleep))
    assert main(["logs", str(config.run_dir), "-f"]) == 0
    assert sum(slept) > 25 and capsys.readouterr().err.count("still following") == 1


def test_sacct_alone_can_answer(stubs: Stubs, config: Config) -> None:
    stubs(squeue="exit 1", sacct="echo '12|COMPLETED|0:0|n1'")
    record(config.run_dir, Job("pretrain", "12", ranks=2))
    assert jobs.active(config.run_dir) == []
    record(config.run_dir, Job("extract", "13", ranks=2))  # sacct has not heard of it yet
    with pytest.raises(NoAnswer):
        jobs.active(config.run_dir)


def test_a_start_before_its_ranks_have_met(stubs: Stubs, config: Config) -> None:
    stubs(squeue="echo '12|RUNNING|None|n[1-2]'")
    record(config.run_dir, Job("pretrain", "12", ranks=2))
    beat = {"time": 0, "left": True, "ranks": 2, "host": "n1", "job": "11", "doing": "pretrain: step 3"}
    (config.run_dir / "heartbeat.json").write_text(json.dumps(beat))
    (config.run_dir / "config.yaml").write_text("{}")
    (config.run_dir / "pretrain").mkdir()
    (config.run_dir / "launch" / "meet-12-1-0.json").write_text(json.dumps({"host": "n1"}))
    text = show(config.run_dir)
    assert "  pretrain  starting" in text and "  last start: pretrain: step 3" in text
    assert "  starting: rank 0 on n1 waits for the other ranks (" in text


def test_a_refused_scancel_is_reported(stubs: Stubs, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    stubs(squeue="echo '12|RUNNING|None|n1'", scancel="echo Access denied >&2; exit 1")
    record(config.run_dir, Job("pretrain", "12", ranks=2))
    assert main(["cancel", str(config.run_dir)]) == 1
    assert "scancel 12: Access denied" in capsys.readouterr().err


def test_cancel_without_a_folder(stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cancel", str(tmp_path / "gone")]) == 1
    assert (
        "gone: no such folder; its jobs, if any: squeue --name gone.prepare,gone.pretrain," in capsys.readouterr().err
    )


def test_a_second_submission_of_a_run_is_refused(stubs: Stubs, submit: Submit, config: Config) -> None:
    (config.run_dir / "launch").mkdir(parents=True)
    with FileLock(config.run_dir / "launch" / ".lock"):
        code, _, error = submit()
    assert code == 1 and "another process is at work on this run" in error


def test_a_refused_submission_leaves_nothing(stubs: Stubs, submit: Submit, config: Config) -> None:
    stubs(sbatch="echo \"sbatch: unrecognized option '--nosuchopt=x'\" >&2; echo 'Try \"sbatch --help\"' >&2; exit 1")
    code, _, error = submit()
    assert code == 1 and "sbatch refused pretrain: unrecognized option '--nosuchopt=x'" in error
    assert not config.run_dir.exists()


def test_shards_that_were_made_with_other_options(submit: Submit, drawn: Path) -> None:
    pack = PackConfig(train=drawn / "train", val=drawn / "val", shard_mb=0.07)
    code, _, error = submit("--dry-run", pack=pack)
    assert code == 1 and "holds another pack (shard_mb 0.05 there, 0.07 now)" in error
    code, _, error = submit("--dry-run", pack=replace(pack, shard_mb=0.05, draw=DrawConfig(train_per_class=7)))
    assert code == 1 and "drawn with other options, see drawn.json" in error


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--name", "a%j"], "a%j: SLURM gives % in a file's name a meaning"),
        (["--name", "a\nb"], "must be a folder name"),
        (["--name", "x" * 300], "must be a folder name of at most 200 bytes"),
        (["--minutes", "0"], "--minutes=0: must be >= 1"),
        (["--nodes", "0"], "--nodes=0: must be >= 1"),
        (["--cpus_per_task", "0"], "--cpus_per_task=0: must be >= 1"),
        (["--minutes", "x"], "--minutes x: must be a whole number"),
        (["--partitoin", "x"], "did you mean 'partition'?"),
        (["--cluster", "/etc"], "--cluster /etc: is a folder"),
        (["--stages", "evaluate"], "evaluate needs pretrain, extract, learn, which are not done"),
        (["--stages", "pretrain", "--sweep", "learn.p_mean=0.3,0.5"], "none of them is what --sweep varies; add learn"),
        (["--sweep", "learn.p_mean", "=", "0.3"], "without spaces"),
        (["--sweep", "learn.methods=phi1,phi2"], "and several of them [A],[B]"),
        (["--sweep", "p_mean=0.3"], "did you mean 'learn.p_mean'?"),
        (["--sweep", "learn.p_mean=0.3,0.30"], "learn.p_mean=0.3 and learn.p_mean=0.30 are the same setting"),
        (["--sweep", "learn.p_mean=2,3"], "--sweep learn.p_mean=2: learn.p_mean=2: must be in [0, 1]"),
        (["--sweep", "learn.seed=1,2", "--sweep", "learn.seed=3"], "a key is given twice"),
    ],
)
def test_bad_options(options: list[str], wanted: str, submit: Submit) -> None:
    code, _, error = submit("--dry-run", *options)
    assert code == 1 and wanted in error and error.count("\n") == 1, error


def test_sweeps_of_two_options_are_multiplied(submit: Submit) -> None:
    code, out, _ = submit("--dry-run", "--sweep", "learn.p_mean = 0.3,0.5", "--sweep", "learn.seed=0,1")
    assert code == 0 and "learn x 4 -> evaluate x 4" in out


@pytest.fixture
def spread(tmp_path: Path) -> Callable[[str], str]:
    """Return ``spread("3")``, which writes a profile with an array of 3 for ``evaluate`` and returns its file."""

    def write(array: str, stage: str = "evaluate") -> str:
        resources = f"{{nodes: 4, tasks_per_node: 2, minutes: 7, array: {array}}}"
        (tmp_path / "site.yaml").write_text(f"nodes: 2\nstages: {{{stage}: {resources}}}")
        return str(tmp_path / "site.yaml")

    return write


def script_of(stage: str, out: str) -> str:
    return out.partition(f"# ---- {stage}\n")[2].partition("# ---- ")[0]


def test_a_table_spread_over_an_array(submit: Submit, spread: Callable[[str], str]) -> None:
    code, out, error = submit("--dry-run", "--cluster", spread("3"))
    assert code == 0, error
    assert out.endswith("chain: pretrain -> extract -> learn -> evaluate x 3 -> merge\n")
    array, merge = script_of("evaluate", out), script_of("merge", out)
    for line in ("--array=0-2%3", "--dependency='afterok:<learn>'", "--nodes=4", "--ntasks-per-node=2", "--requeue"):
        assert f"#SBATCH {line}\n" in array
    for number in range(3):
        assert f"# share {number}/3: dist-train evaluate --config " in array and f" --share {number}/3\n" in array
    for line in ("--dependency='afterok:<evaluate>'", "--nodes=1", "--ntasks-per-node=1", "--time=7"):
        assert f"#SBATCH {line}\n" in merge
    assert "--array" not in merge and "# merge: dist-train evaluate --config " in merge and "--share" not in merge
    code, out, _ = submit("--dry-run", "--cluster", spread("1"))
    assert code == 0 and out.endswith("learn -> evaluate\n") and "--share" not in out


def test_the_tables_of_a_sweep_spread_over_an_array(submit: Submit, spread: Callable[[str], str]) -> None:
    code, out, _ = submit("--dry-run", "--cluster", spread("3"), "--sweep", "learn.p_mean=0.3,0.9")
    assert code == 0 and out.endswith("learn x 2 -> evaluate x 6 -> merge x 2 -> collect\n")
    array, merge = script_of("evaluate", out), script_of("merge", out)
    assert "# learn.p_mean=0.9 share 1/3: dist-train evaluate " in array and "# learn.p_mean=0.9: dist-train" in merge
    # A member that failed does not keep the others from their tables.
    assert "--dependency='afterany:<learn>'" in array and "--dependency='afterany:<evaluate>'" in merge
    assert "--dependency='afterany:<merge>'" in script_of("collect", out)
    assert array.count("/sweep/learn.p_mean=0.3 ") >= 3, "each share counts the starts of its own run"
    code, out, _ = submit("--dry-run", "--cluster", spread("2"), "--sweep", "evaluate.seed=0,1,2")
    assert code == 0 and out.endswith("learn -> evaluate x 6 -> merge x 3 -> collect\n")
    assert "--dependency='afterok:<learn>'" in script_of("evaluate", out)


@pytest.mark.parametrize(
    ("array", "stage", "wanted"),
    [
        ("0", "evaluate", "site.yaml: stages.evaluate.array=0: must be >= 1"),
        ("-2", "evaluate", "site.yaml: stages.evaluate.array=-2: must be >= 1"),
        ("many", "evaluate", "site.yaml: stages.evaluate.array=many: must be a whole number"),
        ("1.5", "evaluate", "site.yaml: stages.evaluate.array=1.5: must be a whole number"),
        ("[2, null]", "evaluate", "site.yaml: stages.evaluate.array=[2, null]: must be a whole number"),
        ("true", "evaluate", "site.yaml: stages.evaluate.array=true: must be a whole number"),
        ("3", "learn", "site.yaml: stages.learn.array=3: only evaluate can be spread over an array"),
        ("5", "evaluate", "stages.evaluate.array=5: members share evaluate.draws=4; choose at most that"),
    ],
)
def test_a_wrong_array(array: str, stage: str, wanted: str, submit: Submit, spread: Callable[..., str]) -> None:
    code, _, error = submit("--dry-run", "--cluster", spread(array, stage))
    assert code == 1 and wanted in error and error.count("\n") == 1, error


def test_an_array_must_fit_every_member_of_a_sweep(submit: Submit, spread: Callable[[str], str]) -> None:
    code, _, error = submit("--dry-run", "--cluster", spread("3"), "--sweep", "evaluate.draws=2,9")
    assert code == 1 and "stages.evaluate.array=3: members share evaluate.draws=2" in error
    code, _, error = submit("--dry-run", "--cluster", spread("5"), "--sweep", "evaluate.draws=5,9")
    assert code == 0, error


def test_without_novel_classes_there_is_nothing_to_spread(
    submit: Submit, spread: Callable[[str], str], config: Config, tmp_path: Path
) -> None:
    wnids = [*open_run(config).base]
    save_split(draw_split("all", [*wnids, *open_run(config).novel], 0, 0, 0), tmp_path / "all.json")
    data = replace(config.data, split=str(tmp_path / "all.json"))
    code, _, error = submit("--dry-run", "--cluster", spread("2"), data=data)
    assert code == 1 and "stages.evaluate.array=2: split all has no novel classes" in error and error.count("\n") == 1


def test_a_share_that_failed_is_named_with_its_log(stubs: Stubs, config: Config) -> None:
    """Of three shares one is at work, one has failed and one is done."""
    sacct = "; ".join(f"echo '12_{n}|{state}|{n}:0|n1'" for n, state in enumerate(("RUNNING", "FAILED", "COMPLETED")))
    stubs(sacct=f"{sacct}; echo '13|CANCELLED|0:0|None assigned'", squeue="echo '12_0|RUNNING|None|n1'")
    record(config.run_dir, Job("evaluate", "12", ["share 0/3", "share 1/3", "share 2/3"], size=3))
    record(config.run_dir, Job("merge", "13"))
    (config.run_dir / "config.yaml").write_text("{}")
    jobs.folder(config.run_dir).mkdir()
    (jobs.folder(config.run_dir) / "12_1_0_log.out").write_text("at work\ndist-train: error: too hot\n")
    beat = {"time": time.time(), "left": False, "ranks": 1, "host": "n1", "job": "14", "doing": "evaluate mean: draw 3"}
    for number, left in ((0, False), (2, True), (1, True)):  # the third is done
        folder = Share(number, 3).folder(config.run_dir)
        folder.mkdir(parents=True)
        doing = Share(2, 3).done if number == 2 else beat["doing"]
        (folder / "heartbeat.json").write_text(json.dumps({**beat, "left": left, "doing": doing}))
    (folder / "error.json").write_text(json.dumps({"time": 0, "rank": 0, "message": "too hot"}))
    old = Share(4, 5).folder(config.run_dir)  # of an array of another size, before
    old.mkdir()
    os.utime(old, (0, 0))
    text = show(config.run_dir)
    assert "  job 12 evaluate: 1 RUNNING, 1 FAILED, 1 COMPLETED" in text and "  job 13 merge: CANCELLED" in text
    assert f"    failed: 12_1; the end of {jobs.folder(config.run_dir)}/12_1_0_log.out\n    at work\n" in text
    assert "  evaluate  running" in text and "  share 0 now: evaluate mean: draw 3 (" in text
    again = f"its log: dist-train logs {config.run_dir} --stage evaluate --member 1"
    assert f"  share 1 died of: rank 0: too hot; {again}" in text
    assert text.endswith("\n  of 3 shares: 1 done (2), 1 at work (0), 1 failed (1)")
    assert not any(word in text for word in ("share 1 stopped", "share 2", "share 4"))
    # Stopped: it starts again by itself, unless it was cancelled.
    (folder / "error.json").unlink()
    assert "  share 1 stopped: evaluate mean: draw 3 (" in show(config.run_dir)
    assert show(config.run_dir).count("; submitted again, the run continues") == 1
    stubs(squeue="echo '12_0|RUNNING|None|n1'; echo '12_1|PENDING|None|'")
    assert "  share 1 stopped: " in show(config.run_dir) and "submitted again" not in show(config.run_dir)


def test_a_job_whose_number_slurm_had_given_before(stubs: Stubs, config: Config) -> None:
    """The accounts then hold the members of an array of that number too, and of an array that had more members."""
    old = "; ".join(f"echo '{n}|COMPLETED|0:0|n1'" for n in ("12_0", "12_1", "14", "14_2"))
    stubs(sacct=f"{old}; echo '12|CANCELLED by 0|0:0|n1'; echo '14_0|FAILED|1:0|n1'; echo '14_1|FAILED|1:0|n1'")
    record(config.run_dir, Job("pretrain", "12"))
    record(config.run_dir, Job("evaluate", "14", ["share 0/2", "share 1/2"], size=2))
    (config.run_dir / "config.yaml").write_text("{}")
    reason = restart.note_cancelled(config.run_dir, "12")
    text = show(config.run_dir)
    assert f"  job 12 pretrain: CANCELLED on n1 [last start: {reason}]\n" in text
    assert "  job 14 evaluate: 2 FAILED (exit code 1)" in text, text


def test_stages_that_are_done_are_not_submitted_again(stubs: Stubs, submit: Submit, config: Config) -> None:
    for stage in ("pretrain", "extract"):
        (config.run_dir / stage).mkdir(parents=True)
        (config.run_dir / stage / "inputs.json").write_text(json.dumps(stage_inputs(open_run(config), stage)))
        (config.run_dir / stage / "done.json").write_text("{}")
    code, out, _ = submit("--stages", "extract")
    assert code == 0 and "nothing to submit" in out
    code, out, _ = submit("--stages", "extract,learn", "--dry-run")
    assert code == 0 and out.endswith("chain: learn\n")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nodes: two", "nodes=two: must be a whole number"),
        ("minutes: 1.5", "minutes=1.5: must be a whole number"),
        ("setup: module load cuda", "setup=module load cuda: must be a list"),
        (
            "stages: {pretrain: {gpus_per_nod: 1}}",
            "unknown key 'stages.pretrain.gpus_per_nod'; did you mean 'stages.pre",
        ),
        ("stages: {pretrain: {nodes: two}}", "stages.pretrain.nodes=two: must be a whole number"),
        ("stages: {pretrain: 3}", "stages.pretrain=3: must be names and values"),
        ("partitoin: gpu", "unknown key 'partitoin'; did you mean 'partition'?"),
        ("nodes: 1\nnodes: 2", "line 2: 'nodes' is there twice"),
        ("array: 3", "array: is of a stage; write it as stages: {evaluate: {array: 3}}"),
        ("evaluate: {array: 3}", "evaluate: stages stand under stages; write it as stages: {evaluate: {"),
        ("arrays: 3", "unknown key 'arrays'; did you mean 'starts'?"),
    ],
)
def test_a_wrong_profile(text: str, wanted: str, submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(text)
    code, _, error = submit("--dry-run", "--cluster", str(tmp_path / "site.yaml"))
    assert code == 1 and f"site.yaml: {wanted}" in error and error.count("\n") == 1, error


def test_numbers_and_booleans_in_a_profile(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("environment: {A: 1}\nsbatch: {exclusive: true, nice: 5, hold: false}")
    code, out, error = submit("--dry-run", "--cluster", str(tmp_path / "site.yaml"))
    assert code == 0, error
    for line in ("#SBATCH --exclusive\n", "#SBATCH --nice=5\n", 'export A="1"\n'):
        assert line in out
    assert "hold" not in out


def test_launch_names_an_unknown_key_of_a_file(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("learn: {p_men: 1}")
    code, _, error = submit("--dry-run", "--config", str(tmp_path / "other.yaml"))
    assert code == 1 and "other.yaml: unknown key 'learn.p_men'; did you mean 'learn.p_mean'?" in error


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["launch", "slurm"], "--cluster is required"),
        (["cancel"], "RUN is required"),
        (["verify-resume"], "RUN is required"),
        (["launch", "doctor"], "dist-train doctor"),
        (["launch", "tensorboard", ".", "--port", "99999"], "--port 99999: must be in 1..65535"),
        (["launch", "tensorboard", ".", "--port", "-1"], "--port -1: must be in 1..65535"),
        (["doctor", "--cluster", "nosuch"], "--cluster nosuch: no such file"),
    ],
)
def test_bad_commands(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    out, error = capsys.readouterr()
    assert not out and wanted in error and error.count("\n") == 1


def test_status_into_a_closed_pipe(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({}))
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "dist_train", "status", str(tmp_path)], stdout=write,
                          stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_newest_job_of_each_stage(tmp_path: Path) -> None:
    for stage, job in (("pretrain", "1"), ("extract", "2"), ("pretrain", "3")):
        record(tmp_path, Job(stage, job, ranks=2))
    with (tmp_path / "launch" / "jobs.jsonl").open("a") as file:
        file.write("cut off\n")
    assert [(job.stage, job.id) for job in newest(tmp_path)] == [("extract", "2"), ("pretrain", "3")]


def test_a_snapshot_is_what_runs_later(tmp_path: Path) -> None:
    code = take_snapshot(tmp_path)
    assert take_snapshot(tmp_path) != code
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    lines = subprocess.run(
        [sys.executable, "-c", "import dist_train, launch.cli.main; from dist_train.config import configs_dir\n"
         "from dist_train.runs.commit import git_commit\n"
         "print(dist_train.__file__, launch.cli.main.__file__, configs_dir(), git_commit(), sep='\\n')"],
        env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    *files, commit = lines
    assert len(files) == 3 and all(file.startswith(str(code)) for file in files)
    assert commit == (code / "COMMIT").read_text().strip() != ""
    assert (code / "launch" / "slurm" / "job_script.sh").is_file()
