"""Which method a model is made with, by a run's own table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_train import UserError
from dist_train.classifier.choosing import choose_method
from dist_train.classifier.from_run import trained_method
from dist_train.config import Config
from dist_train.fewshot.results import Counts, Interval, MethodResult, Results, SplitFacts

METRICS = ("harmonic", "base_top1", "novel_top1")
TABLE = {  # method -> shots -> METRICS
    "phi_plus": {1: (16.0, 43.2, 9.9), 5: (23.2, 43.1, 15.9)},
    "phi2": {1: (10.0, 43.2, 5.7), 5: (20.2, 41.6, 13.4)},
    "phi2mean": {1: (14.0, 42.6, 8.4), 5: (25.1, 40.4, 18.2)},
    "imprint": {1: (24.3, 21.9, 27.6), 5: (23.1, 16.1, 41.2)},  # gives no rows
}


def a_run(folder: Path, trained: tuple[str, ...], table: dict[str, dict[int, tuple[float, float, float]]]) -> Path:
    """Make as much of a run as the choice looks at."""
    for name in trained:
        (folder / "learn" / name / "final").mkdir(parents=True)
    if table:
        methods = {
            name: MethodResult({
                shots: {metric: Interval(value, 0.3) for metric, value in zip(METRICS, values, strict=True)}
                for shots, values in rows.items()
            })
            for name, rows in table.items()
        }  # fmt: skip
        results = Results(
            methods=methods, shots=[1, 5], draws=5, interval="", classes=Counts(180, 20), split=SplitFacts("s", "h"),
            shards="", commit="", command="",
        )  # fmt: skip
        (folder / "evaluate").mkdir()
        (folder / "evaluate" / "results.json").write_text(json.dumps(results.to_json()))
    return folder


TRAINED = ("phi1", "phi2", "phi2mean", "phi_plus")


@pytest.mark.parametrize(
    ("photos", "method", "shots"),
    [((), "phi_plus", 1), ((1, 2, 2), "phi_plus", 1), ((4,), "phi2mean", 5), ((1, 200, 30), "phi2mean", 5),
     ((3,), "phi_plus", 1)],
)  # fmt: skip
def test_the_table_decides_at_the_nearest_number_of_shots(
    photos: tuple[int, ...], method: str, shots: int, tmp_path: Path
) -> None:
    choice = choose_method(a_run(tmp_path, TRAINED, TABLE), photos)
    assert choice.method == method and f"at {shots} shot" in choice.reason


def test_the_line_names_the_next_method_and_what_the_choice_costs(tmp_path: Path) -> None:
    reason = choose_method(a_run(tmp_path, TRAINED, TABLE), [5]).reason
    assert "harmonic mean 25.10%, old classes 40.40%, new 18.20%" in reason
    assert "next phi_plus: harmonic mean 23.20%" in reason and "(+2.70 on old classes)" in reason
    assert "trained, but not in the table: phi_plus_plda, phi1" in reason and "imprint" not in reason


def test_a_method_that_is_made_from_another_needs_that_one(tmp_path: Path) -> None:
    table = {**TABLE, "phi_plus_plda": {1: (18.0, 43.0, 11.4), 5: (25.0, 42.9, 17.6)}}
    choice = choose_method(a_run(tmp_path / "with", TRAINED, table), [1])
    assert choice.method == "phi_plus_plda" and "next phi_plus: harmonic mean 16.00%" in choice.reason
    assert choose_method(a_run(tmp_path / "without", ("phi2",), table), [1]).method == "phi2"


def test_a_method_that_was_not_trained_is_not_chosen(tmp_path: Path) -> None:
    choice = choose_method(a_run(tmp_path, ("phi2",), TABLE), [5])
    assert choice.method == "phi2" and "next" not in choice.reason


def test_without_a_table_the_first_preferred_is_taken_and_the_line_says_so(tmp_path: Path) -> None:
    assert choose_method(a_run(tmp_path / "all", TRAINED, {}), [5]).method == "phi_plus_plda"
    run = a_run(tmp_path, ("phi2", "phi1"), {})
    choice = choose_method(run, [5])
    assert choice.method == "phi2" and "the run has no table" in choice.reason
    (run / "evaluate").mkdir()
    (run / "evaluate" / "results.json").write_text("{}")
    assert "cannot be read" in choose_method(run, [5]).reason


def test_episodes_do_not_compare_old_and_new_classes(tmp_path: Path) -> None:
    run = a_run(tmp_path, ("phi2", "phi1"), TABLE)
    values = json.loads((run / "evaluate" / "results.json").read_text())
    for rows in values["methods"].values():
        for shots in rows:
            rows[shots] = {"accuracy": rows[shots]["harmonic"]}
    (run / "evaluate" / "results.json").write_text(json.dumps(values))
    choice = choose_method(run, [5])
    assert choice.method == "phi2" and "compares no trained method" in choice.reason


def test_a_method_is_refused_where_none_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--method phi2: was not trained, nor was any other; learn it first in "):
        trained_method(Config(name="run", runs=tmp_path), "phi2")


def test_a_run_without_a_trained_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no method that a model can be made with was trained"):
        choose_method(a_run(tmp_path, (), TABLE), [5])
