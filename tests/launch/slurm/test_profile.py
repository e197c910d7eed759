"""Profiles of sites, and the job scripts that they lead to."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.config import configs_dir
from dist_train.errors import UserError
from launch.cli.main import main
from launch.slurm import script
from launch.slurm.profile import load_cluster, stage_resources

GOLDEN = Path(__file__).parent / "golden"


def dry_run(profile: str, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Return what ``launch slurm --dry-run`` prints, with /shared/runs for the folder of runs."""
    arguments = ["--config", "demo", "--cluster", profile, "--runs", str(folder), "--data.shards", f"{folder}/none"]
    assert main(["launch", "slurm", *arguments, "--dry-run", *options]) == 0
    return capsys.readouterr().out.replace(str(folder), "/shared/runs").replace(sys.executable, "/env/bin/python")


@pytest.mark.parametrize(
    ("profile", "options"),
    [("example_gpu", ["--sweep", "learn.p_mean=0.3,0.9"]), ("example_container", [])],
)
def test_the_scripts_of_a_site(
    profile: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are word for word as in golden/. After a change that is meant, read the difference and copy."""
    assert dry_run(profile, tmp_path, capsys, *options) == (GOLDEN / f"{profile}.txt").read_text()
    assert not list(tmp_path.iterdir()), "a dry run leaves nothing behind"


@pytest.mark.parametrize("profile", sorted(path.stem for path in (configs_dir() / "clusters").glob("*.yaml")))
def test_shellcheck_has_nothing_to_say_about_the_scripts(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts, _, _ = dry_run(profile, tmp_path, capsys).rpartition("chain: ")
    _, *parts = re.split(r"^# ---- \w+\n", scripts, flags=re.MULTILINE)
    assert len(parts) == 5, "a script for each stage"
    files = [tmp_path / f"{number}.sh" for number in range(len(parts))]
    for file, text in zip(files, parts, strict=True):
        file.write_text(text)
    template = Path(script.__file__).with_name("job_script.sh")
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, template, *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_no_site_is_named_in_the_code() -> None:
    code = "".join(path.read_text() for path in Path(__file__).parents[3].glob("launch/**/*.py"))
    for profile in (configs_dir() / "clusters").glob("*.yaml"):
        assert f'"{profile.stem}"' not in code


def test_a_stage_asks_for_its_own_then_the_sites_resources() -> None:
    cluster = load_cluster("example_gpu")
    assert stage_resources(cluster, "pretrain", {}).nodes == 2
    assert stage_resources(cluster, "learn", {}).gpus_per_node == 1
    assert stage_resources(cluster, "learn", {"gpus_per_node": 4, "nodes": None}).gpus_per_node == 4
    packing = stage_resources(cluster, "prepare", {"nodes": 4, "gpus_per_node": 8})
    assert (packing.nodes, packing.ranks_per_node, packing.gpus_per_node, packing.partition) == (1, 1, 0, "cpu")


def test_more_ranks_than_gpus_are_not_submitted(tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text(
        "gpus_per_node: 8\ntasks_per_node: 8\nstages: {learn: {gpus_per_node: 1}, extract: {gpus_per_node: 0}}"
    )
    cluster = load_cluster(str(profile))
    assert stage_resources(cluster, "pretrain", {}).ranks_per_node == 8
    assert stage_resources(cluster, "extract", {}).ranks_per_node == 8, "on CPUs"
    with pytest.raises(UserError, match=r"learn: tasks_per_node=8 with gpus_per_node=1.*stages\.learn"):
        stage_resources(cluster, "learn", {})
    assert stage_resources(cluster, "learn", {"tasks_per_node": 1}).ranks_per_node == 1
    with pytest.raises(UserError, match="pretrain: tasks_per_node=16 with gpus_per_node=8"):
        stage_resources(cluster, "pretrain", {"tasks_per_node": 16})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("partitoin: gpu", "partitoin"),
        ("nodes: 0", "nodes=0: must be >= 1"),
        ("nodes: many", "nodes"),
        ("stages: {train: {nodes: 1}}", "stages.train: no such stage"),
        ("starts: 0", "starts=0"),
    ],
)
def test_a_wrong_profile_is_one_line(
    text: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.yaml").write_text(text)
    assert main(["launch", "slurm", "--config", "demo", "--cluster", str(tmp_path / "site.yaml"), "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert wanted in error and "site.yaml" in error and error.count("\n") == 1


def test_no_such_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "slurm", "--config", "demo", "--cluster", "nowhere", "--dry-run"]) == 1
    assert "--cluster nowhere: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--sweep", "pretrain.lr=1,2"], "members share one backbone"),
        (["--sweep", "learn.p_mean"], "KEY=VALUE"),
        (["--stages", "pretrain,teach"], "'teach' is no stage"),
    ],
)
def test_wrong_options(options: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "demo", "--cluster", "dev", "--runs", str(tmp_path), "--data.shards", f"{tmp_path}/none"]
    assert main(["launch", "slurm", *arguments, "--dry-run", *options]) == 1
    assert wanted in capsys.readouterr().err
