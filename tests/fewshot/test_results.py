"""Results as values with a type, to the file and back, and the files of older versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dist_train.fewshot.results import (
    VERSION,
    Counts,
    EpisodeFacts,
    Interval,
    MethodResult,
    Results,
    SplitFacts,
)
from dist_train.fewshot.table_row import Curve, Curves, TableRow

CURVES = Curves(Curve((50.0, 0.0), (1.0, 0.0)), Curve((50.0, 40.0), (1.0, 2.0)))


def joint() -> Results:
    metrics = {"base_top1": Interval.of([50.0, 52.0]), "harmonic": Interval.of([30.5, 31.5])}
    return Results(
        methods={"phi2": MethodResult({1: metrics}, {1: CURVES})},
        oracles={"nn_oracle": {"base_top1": Interval.of([60.0])}},
        seconds={"phi2": 1.5, "nn_oracle": 0.5},
        shots=[1],
        draws=2,
        interval="95% t-interval over support draws",
        queries=Counts(36, 18),
        classes=Counts(6, 3),
        split=SplitFacts("small", "0123", "pseudo-novel"),
        shards="fedc",
        seed=7,
        rule="mean",
        options={"ridge": 2.0},
        commit="abc",
        older={"phi2": "def"},
        command="dist-train run",
    )


def episodes() -> Results:
    return Results(
        protocol="released",
        methods={"phi2": MethodResult({5: {"accuracy": Interval.spread([60.0, 70.0, 80.0])}})},
        shots=[5],
        draws=3,
        interval="standard deviation over episodes",
        classes=Counts(6, 3),
        split=SplitFacts("small", "0123"),
        shards="fedc",
        commit="abc",
        command="dist-train run",
        episodes=EpisodeFacts(5, None),
    )


@pytest.mark.parametrize("results", [joint(), episodes()], ids=["joint", "released"])
def test_results_survive_their_file(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.to_json()))
    assert Results.read(path) == results


def test_the_keys_of_the_file() -> None:
    """Scripts of users read them."""
    values = joint().to_json()
    assert list(values) == [
        "version", "protocol", "methods", "oracles", "curves", "seconds", "shots", "draws", "interval", "queries",
        "classes", "split", "shards", "seed", "rule", "options", "commit", "older", "command",
    ]  # fmt: skip
    assert values["version"] == VERSION and values["split"]["holdout"] == "pseudo-novel"
    assert values["methods"]["phi2"]["1"]["base_top1"].keys() == {"mean", "ci95", "draws"}
    assert values["oracles"]["nn_oracle"]["base_top1"] == {"mean": 60.0, "ci95": 0.0, "draws": [60.0]}
    assert values["curves"]["phi2"]["1"]["forgetting_ci95"] == [1.0, 2.0]
    of_episodes = episodes().to_json()
    assert of_episodes["methods"]["phi2"]["5"]["accuracy"] == {"mean": 70.0, "std": 10.0, "draws": [60.0, 70.0, 80.0]}
    assert of_episodes["episodes"] == {"ways": 5, "queries": None}
    assert not of_episodes.keys() & {"oracles", "curves", "queries"}


def test_files_of_older_versions_open() -> None:
    """Without a version, options, rule, older rows and intervals of curves."""
    values = joint().to_json()
    for key in ("version", "protocol", "rule", "options", "older", "seconds"):
        del values[key]
    by_name: dict[str, Any] = values["curves"]["phi2"]["1"]
    del by_name["seen_unseen_ci95"], by_name["forgetting_ci95"]
    results = Results.from_json(values)
    assert results.methods["phi2"].shots == joint().methods["phi2"].shots
    assert results.methods["phi2"].curves[1].forgetting == Curve((50.0, 40.0))
    assert (results.protocol, results.rule, results.options, results.older) == ("joint", "max", {}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "not the results of an evaluation"),
        ('{"methods": {}}', r"not the results of an evaluation \(KeyError: 'classes'\)"),
        (json.dumps({**joint().to_json(), "version": VERSION + 1}), "newer than this program's.*update dist-train"),
    ],
)
def test_what_is_not_results_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}: .*{message}"):
        Results.read(path)


def test_interval_is_students() -> None:
    draws = [1.0, 2.0, 4.0, 3.0]
    interval = Interval.of(draws)
    low, high = stats.t.interval(0.95, 3, loc=2.5, scale=stats.sem(draws))
    assert interval.mean == 2.5 and interval.half_width == pytest.approx((high - low) / 2)
    assert interval.draws == tuple(draws) and Interval.of([3.0]).half_width == 0


def test_paired_differences_cancel_what_the_draws_share() -> None:
    luck = np.random.default_rng(0).normal(0, 5, 30)
    difference = Interval.paired(list(luck + 1 + np.arange(30) % 2 * 0.01), list(luck))
    assert difference.mean == pytest.approx(1.005)
    assert difference.half_width < 0.003 < 1 < Interval.of(list(luck)).half_width
    assert difference.to_json().keys() == {"mean", "ci95"}


def test_curves_are_averaged_point_by_point() -> None:
    curve = Curve.over_draws([np.array([50.0, 10.0]), np.array([52.0, 10.0])])
    assert curve.mean == (51.0, 10.0)
    assert curve.ci95 == (pytest.approx(Interval.of([50.0, 52.0]).half_width, abs=1e-4), 0.0)


def test_a_row_survives_its_file() -> None:
    row = TableRow({"1": {"base_top1": [50.0, 52.0]}}, {"1": CURVES}, 1.5)
    assert TableRow.from_json(json.loads(json.dumps(row.to_json()))) == row
