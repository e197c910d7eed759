"""Profiles, and the scripts that they lead to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dist_train.config import configs_dir
from dist_train.errors import UserError
from launch.cli.main import main
from launch.slurm.profile import load_cluster, resources

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("profile", ["example_gpu", "example_container"])
def test_the_scripts_of_a_site(profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word as in tests/launch/golden. After a change that is meant, read the difference and copy."""
    arguments = [
        "--config",
        "demo",
        "--cluster",
        profile,
        "--runs",
        str(tmp_path),
        "--data.shards",
        str(tmp_path / "none"),
    ]
    more = ["--sweep", "learn.p_mean=0.3,0.9", "--dry-run"] if profile == "example_gpu" else ["--dry-run"]
    assert main(["launch", "slurm", *arguments, *more]) == 0
    text = capsys.readouterr().out.replace(str(tmp_path), "/shared/runs").replace(sys.executable, "/env/bin/python")
    assert text == (GOLDEN / f"{profile}.txt").read_text()
    assert not list(tmp_path.iterdir()), "a dry run leaves nothing behind"


def test_no_site_is_named_in_the_code() -> None:
    code = "".join(path.read_text() for path in Path(__file__).parents[2].glob("launch/*.py"))
    for profile in (configs_dir() / "clusters").glob("*.yaml"):
        assert f'"{profile.stem}"' not in code


def test_who_decides_what_a_stage_asks_for() -> None:
    cluster = load_cluster("example_gpu")
    assert resources(cluster, "pretrain", {}).nodes == 2
    assert resources(cluster, "learn", {}).gpus_per_node == 1
    assert resources(cluster, "learn", {"gpus_per_node": 4, "nodes": None}).gpus_per_node == 4
    packing = resources(cluster, "prepare", {"nodes": 4, "gpus_per_node": 8})
    assert (packing.nodes, packing.ranks_per_node, packing.gpus_per_node, packing.partition) == (1, 1, 0, "cpu")


def test_more_ranks_than_gpus_are_not_submitted(tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text(
        "gpus_per_node: 8\ntasks_per_node: 8\nstages: {learn: {gpus_per_node: 1}, extract: {gpus_per_node: 0}}"
    )
    cluster = load_cluster(str(profile))
    assert resources(cluster, "pretrain", {}).ranks_per_node == 8
    assert resources(cluster, "extract", {}).ranks_per_node == 8, "on CPUs"
    with pytest.raises(UserError, match=r"learn: tasks_per_node=8 with gpus_per_node=1.*stages\.learn"):
        resources(cluster, "learn", {})
    assert resources(cluster, "learn", {"tasks_per_node": 1}).ranks_per_node == 1
    with pytest.raises(UserError, match="pretrain: tasks_per_node=16 with gpus_per_node=8"):
        resources(cluster, "pretrain", {"tasks_per_node": 16})


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
    arguments = [
        "--config",
        "demo",
        "--cluster",
        "dev",
        "--runs",
        str(tmp_path),
        "--data.shards",
        str(tmp_path / "none"),
    ]
    assert main(["launch", "slurm", *arguments, "--dry-run", *options]) == 1
    assert wanted in capsys.readouterr().err
