"""The table of runs that differ in their seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.runs import run_all
from saved_results import save_results

from dist_train.config import Config
from dist_train.errors import UserError
from dist_train.fewshot.results import Interval
from dist_train.report.comparison import PAIRED_METRICS
from dist_train.stages.extract import extract
from dist_train.stages.pretrain import pretrain
from launch.cli.main import main
from launch.grid.nested import NestedMean
from launch.grid.seeds import seeds_table
from launch.slurm.launch import launch_chain
from launch.slurm.profile import load_cluster

SIZES = (3, 2, 5)
"""Backbones, predictors of each, draws."""


def save_member(folder: Path, draws: Mapping[str, Sequence[float]], inputs: Mapping[str, Any]) -> None:
    """Write what a member's evaluate leaves: the same draws for every metric, at 1 shot."""
    metrics = {method: dict.fromkeys(PAIRED_METRICS, Interval.of(values)) for method, values in draws.items()}
    number = max(map(len, draws.values()))
    save_results(folder, 1, metrics, draws=number, seed=inputs["evaluate.seed"], commit="0123")
    (folder / "evaluate" / "inputs.json").write_text(json.dumps(dict(inputs)))


@pytest.fixture
def figures() -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return figures of two methods, [backbones, predictors, draws]."""
    rng = np.random.default_rng(0)
    phi2 = rng.normal(10, 1, SIZES).round(6)
    return {"phi2": phi2, "phi_plus": (phi2 + rng.normal(2, 0.1, SIZES)).round(6)}


@pytest.fixture
def runs(tmp_path: Path, figures: Mapping[str, Any]) -> list[Path]:
    """Return the folders of three runs with two predictors each."""
    folders = [tmp_path / f"s{i}" for i in range(SIZES[0])]
    for i, folder in enumerate(folders):
        for j in range(SIZES[1]):
            draws = {method: values[i, j].tolist() for method, values in figures.items()}
            inputs = {"seed": i, "learn.seed": j, "evaluate.seed": 10 + i, "learn.steps": 40}
            save_member(folder / "sweep" / f"learn.seed={j}", draws, inputs)
    return folders


def change(member: Path, key: str, value: Any) -> None:
    """Change an input that a member's results were made from."""
    path = member / "evaluate" / "inputs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def cells_of(text: str, title: str, method: str) -> list[str]:
    """Return the cells of a method in the table below a title."""
    table = text.split(f"{title}:\n")[1].split("\n\n")[0]
    line = next(line for line in table.splitlines() if line.startswith(f"| {method} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_means_differences_and_deviations_are_those_of_all_members(
    runs: list[Path], figures: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["collect", *map(str, runs)]) == 0
    text = capsys.readouterr().out
    difference = figures["phi_plus"] - figures["phi2"]
    apart = "Differences from φ2, of the same predictors' seed and draw"
    for title, method, values, sign in (("Figures", "φ2", figures["phi2"], ""), (apart, "φ+", difference, "+")):
        of = NestedMean.of(values)
        assert cells_of(text, title, method) == [f"{of.mean:{sign}.2f} ± {of.half_width:.2f}"] * 4
        deviations = f"{of.backbone:.2f} / {of.predictor:.2f} / {of.draw:.2f}"
        assert (
            cells_of(text, f"{title}, standard deviations of backbone / predictor / draw", method) == [deviations] * 4
        )
    assert "3 backbones (seed 0, 1, 2), 2 predictors on each (learn.seed 0, 1), 5 draws" in text
    assert "with 2 degrees of freedom" in text and "evaluate.seed 10, 11, 12" in text and "commit 0123" in text


def test_a_method_that_a_member_lacks_is_named_and_left_out(runs: list[Path]) -> None:
    path = runs[1] / "sweep" / "learn.seed=1" / "evaluate" / "results.json"
    values = json.loads(path.read_text())
    values["methods"].pop("phi_plus")
    path.write_text(json.dumps(values))
    text = seeds_table(runs)
    assert "Left out, as not all have them in all draws: φ+." in text and "| φ+ |" not in text


def test_a_method_without_a_predictor_is_taken_from_any_member(
    runs: list[Path], figures: Mapping[str, Any], tmp_path: Path
) -> None:
    imprint = np.random.default_rng(1).normal(30, 1, (SIZES[0], SIZES[2])).round(6)
    for i, folder in enumerate(runs):
        member = folder / "sweep" / f"learn.seed={i % 2}"  # not the same in all runs
        draws = {method: values[i, i % 2].tolist() for method, values in figures.items()}
        inputs = json.loads((member / "evaluate" / "inputs.json").read_text())
        shutil.rmtree(member)
        save_member(member, {**draws, "imprint": imprint[i].tolist()}, inputs)
    text = seeds_table(runs)
    assert "Left out" not in text
    of = NestedMean.of(np.repeat(imprint[:, None], SIZES[1], axis=1))
    assert cells_of(text, "Figures", "Weight imprinting") == [f"{of.mean:.2f} ± {of.half_width:.2f}"] * 4
    assert of.predictor < 1e-9 < of.half_width
    apart = "Differences from φ2, of the same predictors' seed and draw"
    of = NestedMean.of(imprint[:, None] - figures["phi2"])
    assert cells_of(text, apart, "Weight imprinting") == [f"{of.mean:+.2f} ± {of.half_width:.2f}"] * 4
    # Members that differ cannot stand for others, and a row that the code does not know may have a predictor.
    other = runs[0] / "sweep" / "learn.seed=2"
    for folder in runs:
        inputs = {
            **json.loads((folder / "sweep" / "learn.seed=0" / "evaluate" / "inputs.json").read_text()),
            "learn.seed": 2,
        }
        save_member(folder / "sweep" / "learn.seed=2", {"phi2": [1.0] * SIZES[2], "gone": [1.0] * SIZES[2]}, inputs)
    assert "| Weight imprinting |" in (text := seeds_table(runs)) and "in all draws: gone, φ+." in text
    shutil.rmtree(other)
    wrong = (imprint[0] + 1).tolist()
    save_member(other, {"phi2": [1.0] * SIZES[2], "imprint": wrong}, {**inputs, "seed": 0, "evaluate.seed": 10})
    assert "Left out, as not all have them in all draws: gone, Weight imprinting, φ+." in seeds_table(runs)
    for folder in runs:
        shutil.rmtree(folder / "sweep" / "learn.seed=2")
    # A run that has it in no member, or not in all draws, has it not.
    shutil.rmtree(member)
    save_member(member, {**draws, "imprint": imprint[i, 1:].tolist()}, inputs)
    assert "Left out, as not all have them in all draws: Weight imprinting." in seeds_table(runs)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learn.steps", 41, r"differ in more than seeds \(learn\.steps: 40 and 41\)"),
        ("seed", 0, r"seed=0, as .*s0 has; the intervals need backbones of other seeds"),
        ("evaluate.seed", 10, r"evaluate\.seed=10, as .*s0 has; the intervals need other draws for each backbone"),
    ],
)
def test_runs_that_are_no_nested_seeds_are_refused(runs: list[Path], key: str, value: Any, said: str) -> None:
    for j in range(SIZES[1]):
        change(runs[1] / "sweep" / f"learn.seed={j}", key, value)
    with pytest.raises(UserError, match=said):
        seeds_table(runs)


def test_other_seeds_of_predictors_are_named_for_each_run(runs: list[Path]) -> None:
    folder = runs[1] / "sweep"
    (folder / "learn.seed=1").rename(folder / "learn.seed=7")
    change(folder / "learn.seed=7", "learn.seed", 7)
    assert "2 predictors on each (learn.seed 0, 1; 0, 7; 0, 1), 5 draws" in seeds_table(runs)


def test_a_predictor_with_draws_of_its_own_is_refused(runs: list[Path]) -> None:
    change(runs[2] / "sweep" / "learn.seed=1", "evaluate.seed", 99)
    with pytest.raises(UserError, match=r"differ in more than seeds \(evaluate\.seed: 12 and 99\)"):
        seeds_table(runs)


def test_too_few_predictors_and_damaged_results_are_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: no such folder"):
        seeds_table([*runs, tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: needs a sweep over two or more predictors, and has 0"):
        seeds_table([*runs, tmp_path / "empty"])
    member = runs[0] / "sweep" / "learn.seed=1"
    member.rename(runs[0] / "sweep" / "learn.seed=1,learn.lr=1.0")  # of another sweep
    with pytest.raises(UserError, match=r"s0: needs a sweep over two or more predictors, and has 1"):
        seeds_table(runs)
    path = runs[1] / "sweep" / "learn.seed=0" / "evaluate" / "results.json"
    whole = json.loads(path.read_text())
    for damage in (
        {"methods": {"phi2": {}}},
        {"methods": {"phi2": {"1": {"base_top1": whole["methods"]["phi2"]["1"]["base_top1"]}}}},
        {"methods": {"phi2": {"1": {**whole["methods"]["phi2"]["1"], "ausuc": {"mean": 1, "ci95": 1, "draws": [1]}}}}},
        {"methods": {"phi2": {"1": {key: {"mean": 1, "ci95": 1, "draws": "text"} for key in PAIRED_METRICS}}}},
        {"methods": 3},
    ):
        path.write_text(json.dumps({**whole, **damage}))
        with pytest.raises(UserError, match=r"s1/sweep/learn\.seed=0: has no results \(.+\); finish its evaluate"):
            seeds_table(runs[1:])
    path.write_text("{")
    with pytest.raises(UserError, match=r"s1/sweep/learn\.seed=0: has no results"):
        seeds_table(runs[1:])
    path.write_text(json.dumps(whole))
    for inputs in ("[]", "3", "null"):
        path.with_name("inputs.json").write_text(inputs)
        with pytest.raises(UserError, match=r"s1/sweep/learn\.seed=0: has no results"):
            seeds_table(runs[1:])


def test_other_numbers_of_predictors_are_refused(runs: list[Path]) -> None:
    (runs[1] / "sweep" / "learn.seed=1").rename(runs[1] / "sweep" / "kept")
    save_member(runs[0] / "sweep" / "learn.seed=2", {"phi2": [1.0, 2.0]}, {"evaluate.seed": 10})
    with pytest.raises(UserError, match=r"s2: has 2 predictors, and .*s0 3; make as many"):
        seeds_table([runs[0], runs[2]])


def test_two_backbones_with_two_predictors_each(
    config: Config, with_backbone: Callable[..., Config], warm_executable: None
) -> None:
    """The whole way: two backbones are trained, and not four."""
    learn, evaluate = (
        replace(config.learn, methods=["phi2"], steps=5),
        replace(config.evaluate, methods=["mean", "phi2"]),
    )
    configs = [
        replace(config, name=f"s{n}", seed=n, learn=learn, evaluate=replace(evaluate, seed=n)) for n in (0, 1)
    ]  # fmt: skip
    with_backbone(configs[0], extracted=True)
    run_all(configs[1], (pretrain, extract))
    for own in configs:
        assert launch_chain(own, load_cluster("dev"), {}, sweep=["learn.seed=0,1"], here=True) == 0
        assert (own.run_dir / "sweep" / "learn.seed=1" / "pretrain").resolve() == (own.run_dir / "pretrain").resolve()
    text = seeds_table([own.run_dir for own in configs])
    assert "2 backbones (seed 0, 1), 2 predictors on each (learn.seed 0, 1), 4 draws" in text
    deviations = cells_of(text, "Figures, standard deviations of backbone / predictor / draw", "Class mean + cosine")
    assert all(cell.split(" / ")[1] == "0.00" for cell in deviations)  # it has no predictor
