"""The classes and photos that tools/bench_unknown.py draws, and its figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_unknown


@pytest.fixture(scope="module")
def features() -> dict[str, torch.Tensor]:
    """Return activations of 80 classes of 45 photos; the classes lie apart."""
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(80, 1, 24, generator=draws)
    photos = 1 + centres + 0.5 * torch.randn(80, 45, 24, generator=draws)
    return {f"n{number:08}": own for number, own in enumerate(photos)}


def test_no_class_is_for_choices_and_reported(features: dict[str, torch.Tensor]) -> None:
    choices, reported = bench_unknown.halves(features)
    assert len(choices) == len(reported) == 40 and not set(choices) & set(reported)


def test_photos_of_other_classes_are_told_from_known_photos(features: dict[str, torch.Tensor]) -> None:
    figures = bench_unknown.draw(features, bench_unknown.halves(features)[1], 0, 5)
    signs = ("probability", "Mahalanobis distance", "cosine to the nearest class mean")
    assert all(figures[f"AUROC of the {sign}"] > 80 for sign in signs)
    assert figures["known photos that pass both"] > 85 > figures["other photos that pass both"]
    for rule in ("the probability's threshold", "the familiarity's threshold"):
        assert figures["other photos that pass both"] <= figures[f"other photos that pass {rule}"]
    assert figures != bench_unknown.draw(features, bench_unknown.halves(features)[1], 1, 5)


def test_the_table_has_the_mean_of_the_draws() -> None:
    table = bench_unknown.table("reported", {5: [{"right": 80.0}, {"right": 90.0}], 20: [{"right": 91.0}] * 2})
    assert table.splitlines()[2] == "| right | 85.0 ± 63.5 | 91.0 ± 0.0 |"
