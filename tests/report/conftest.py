"""Results of two methods at two numbers of shots, and what else a report shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from report_samples import make_pictures, metrics

from dist_train.fewshot.results import Counts, MethodResult, Results, SplitFacts
from dist_train.report.page import Pictures
from dist_train.report.plots import TrainingCurves


@pytest.fixture
def results() -> Results:
    return Results(
        methods={
            "mean": MethodResult({1: metrics(58.001, 80, 2.5, 9, 4.79, 9), 5: metrics(58, 80, 12.25, 30, 20.2, 14)}),
            "phi2": MethodResult({
                1: metrics(57.126, 79, 21.5, 45, 31.24, 20),
                5: metrics(56, 78, 33.333, 60, 41.8, 28),
            }),
        },
        shots=[1, 5],
        draws=100,
        queries=Counts(9000, 1000),
        classes=Counts(180, 20),
        split=SplitFacts("tiny", "0123"),
        shards="fedc",
        commit="abc",
        command="dist-train run --config a|b",
        interval="95% t-interval over support draws",
    )  # fmt: skip


@pytest.fixture
def many_methods(results: Results) -> Callable[[list[str]], Results]:
    """``many_methods(names)``: results of methods from the worst to the best."""

    def make(names: list[str]) -> Results:
        methods = {
            name: MethodResult({k: metrics(58, 80, 2, 9, 4 + n / 4, 9) for k in results.shots})
            for n, name in enumerate(names)
        }
        return replace(results, methods=methods)

    return make


@pytest.fixture
def training() -> TrainingCurves:
    backbone = [
        {"step": step, "train/loss": 5 / step, "train/top1(%)": step / 10, "optim/lr": 0.1} for step in range(1, 900)
    ]
    predictor = [
        {"step": 10, "train/loss": 2.0},
        {"step": 20, "train/loss": 1.0, "eval/base_top1(%)": 60.0},
    ]
    return TrainingCurves([*backbone, {"step": 900, "eval/top1(%)": 61.0}], {"phi2": predictor})


@pytest.fixture
def provenance() -> dict[str, Any]:
    return {"commit": "abc", "versions": {"torch": "2.14", "numpy": "2.4"}, "seeds": {"seed": 7}}


@pytest.fixture
def pictures() -> Pictures:
    return make_pictures()
