"""Sweeps: their members, what they share, and the table of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from saved_results import save_results

from dist_train.config import Config
from dist_train.config.io import read_config
from dist_train.errors import UserError
from dist_train.fewshot.results import Interval, Results
from dist_train.runs.run import Run
from launch.grid.report import sweep_table
from launch.grid.sweep import link_members, sweep_members
from launch.slurm.launch import launch_chain
from launch.slurm.preflight import choose_stages
from launch.slurm.profile import load_cluster

SEEDS = {"evaluate.seed=7": 7, "evaluate.seed=8": 8}


def joint(base: float) -> dict[str, Interval]:
    return {"base_top1": Interval(base, 0.25), "novel_top1": Interval(12.0, 0.5), "harmonic": Interval(20.0, 1.0)}


def test_members_are_all_combinations(config: Config) -> None:
    members = sweep_members(config, ["learn.p_mean=0.3,0.9", "evaluate.shots=[1,2],[1]"])
    assert len(members) == 4
    member = next(m for m in members if m.name == "learn.p_mean=0.3,evaluate.shots=[1,2]")
    assert (member.config.learn.p_mean, member.config.evaluate.shots) == (0.3, [1, 2])
    assert member.run == config.run_dir / "sweep" / member.name


@pytest.mark.parametrize(
    ("entries", "first"),
    [(["evaluate.seed=1,2"], "evaluate"), (["evaluate.seed=1", "learn.lr=1"], "learn")],
)
def test_members_differ_from_the_first_stage_that_is_varied(config: Config, entries: list[str], first: str) -> None:
    assert {member.first for member in sweep_members(config, entries)} == {first}


def test_a_value_that_does_not_fit_is_named_with_its_member(config: Config) -> None:
    with pytest.raises(UserError, match=r"--sweep learn\.p_mean=2: learn\.p_mean=2: must be in \[0, 1\]"):
        sweep_members(config, ["learn.p_mean=0.5,2"])


def test_a_name_that_is_too_long_for_a_folder_is_refused(config: Config) -> None:
    shots = ",".join(str(number) for number in range(1, 80))
    with pytest.raises(UserError, match=r"must be a folder name of at most 200 bytes; vary fewer keys"):
        sweep_members(config, [f"evaluate.shots=[{shots}]"])


def test_members_share_the_stages_before_their_own(config: Config) -> None:
    run = config.run_dir
    (run / "pretrain").mkdir(parents=True)
    (run / "pretrain" / "done.json").write_text("{}")
    members = sweep_members(config, ["learn.seed=1"])
    for _ in range(2):  # the second time, as when the sweep is submitted again
        link_members(run, members)
    assert (run / "sweep" / "learn.seed=1" / "pretrain" / "done.json").is_file()
    assert not (run / "sweep" / "learn.seed=1" / "learn").exists()


def test_the_table_names_members_without_results(config: Config) -> None:
    run, sweep = config.run_dir, config.run_dir / "sweep"
    link_members(run, sweep_members(config, ["learn.seed=1,2"]))
    with pytest.raises(UserError, match="no member has results yet"):
        sweep_table(run)
    save_results(sweep / "learn.seed=1", 1, {"phi2": joint(40.0)})
    text = sweep_table(run)
    assert "| learn.seed=1 | φ2 | 1 | 40.00 ± 0.25 | 12.00 ± 0.50 | 20.00 ± 1.00 |" in text
    assert "Without results: learn.seed=2" in text and (sweep / "table.md").read_text() == text


def test_the_table_has_members_of_two_protocols(config: Config) -> None:
    run, sweep = config.run_dir, config.run_dir / "sweep"
    link_members(run, sweep_members(config, ["learn.seed=1,2"]))
    save_results(sweep / "learn.seed=1", 1, {"phi2": joint(40.0)})
    save_results(sweep / "learn.seed=2", 5, {"phi2": {"accuracy": Interval(60.5, 9.0, measure="std")}})
    assert "| learn.seed=2 | φ2 | 5 | – | – | – | 60.50 ± 9.00 |" in sweep_table(run)


def test_a_sweep_runs_its_members_from_their_frozen_configurations(
    whole_run: Run, tmp_path: Path, warm_executable: None
) -> None:
    """Without SLURM, on a copy of a finished run; then the same sweep has nothing left to do."""
    config = replace(whole_run.config, runs=tmp_path)
    shutil.copytree(whole_run.dir, config.run_dir)
    cluster = load_cluster("dev")
    assert launch_chain(config, cluster, {}, sweep=["evaluate.seed=7,8"], here=True) == 0
    sweep = config.run_dir / "sweep"
    results = {name: Results.read(sweep / name / "evaluate" / "results.json") for name in SEEDS}
    assert {name: found.seed for name, found in results.items()} == SEEDS
    assert all(
        read_config(sweep / name / "launch" / "config.yaml").evaluate.seed == seed for name, seed in SEEDS.items()
    )
    assert results["evaluate.seed=7"].command.endswith(f"{sweep}/evaluate.seed=7/launch/config.yaml")
    assert all(f"| {name} | φ2 | 1 | " in (sweep / "table.md").read_text() for name in SEEDS)
    members = sweep_members(config, ["evaluate.seed=7,8"])
    assert choose_stages(config, None, members) == []
