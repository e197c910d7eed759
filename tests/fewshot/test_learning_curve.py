"""The curve over photos a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dist_train.data.activations import Activations
from dist_train.fewshot import learning_curve
from dist_train.fewshot.closed_form import fit
from dist_train.fewshot.learning_curve import DRAWS, Job, curve_of_images, curve_of_shots
from dist_train.fewshot.results import Interval

CPU = torch.device("cpu")


def table(counts: list[int], seed: int, dim: int = 24) -> Activations:
    """Return images of classes that overlap, so that a few images do not tell them apart."""
    centres = np.random.RandomState(0).normal(size=(len(counts), dim))
    noise = np.random.RandomState(seed).normal(size=(sum(counts), dim))
    rows = np.repeat(centres, counts, axis=0) + 2 * noise
    return Activations(rows.astype(np.float16), np.arange(sum(counts)), np.concatenate([[0], np.cumsum(counts)]))


def test_more_images_name_more_photos_right() -> None:
    train, val = table([64] * 5, 1), table([40] * 5, 2)
    curve = curve_of_images(train, val, CPU, 0)
    assert curve and [point.images for point in curve.points] == [8, 16, 32, 64] and not curve.novel
    means = [point.accuracy.mean for point in curve.points]
    assert means[0] < means[1] < means[3] and means[0] > 20
    assert [len(point.accuracy.draws) for point in curve.points] == [DRAWS] * 3 + [1]
    assert curve.gain.mean == pytest.approx(means[3] - means[2]) and curve.gain.half_width > 0
    made = fit(train, CPU)
    answers = (torch.from_numpy(val.rows).float() @ made.rows.T + made.bias).argmax(1)
    assert means[3] == pytest.approx(100 * (answers.numpy() == val.labels).mean())
    assert curve_of_images(train, val, CPU, 0) == curve != curve_of_images(train, val, CPU, 1)


def test_each_class_keeps_its_own_share_and_half_of_a_draw_holds_its_quarter() -> None:
    train = table([40, 8, 1], 1)
    quarter, half = (learning_curve._part(train, share, 0, 3) for share in (1 / 4, 1 / 2))
    assert np.diff(quarter.offsets).tolist() == [10, 2, 1] and np.diff(half.offsets).tolist() == [20, 4, 1]
    assert set(quarter.ids) < set(half.ids) and len(set(half.ids)) == len(half.ids)
    assert (train.rows[half.ids] == half.rows).all() and (train.labels[half.ids] == half.labels).all()
    assert set(learning_curve._part(train, 1 / 2, 0, 4).ids) != set(half.ids)


def test_few_images_give_the_points_that_differ() -> None:
    jobs: list[Job] = []

    def watch(own: list[Job]) -> list[Job]:
        jobs.extend(own)
        return own

    curve = curve_of_images(table([3, 2, 1], 1), table([4, 4, 4], 2), CPU, 0, watch)  # type: ignore[arg-type]
    assert curve and [round(point.images, 2) for point in curve.points] == [1, 1.33, 2] and len(jobs) == 2 * DRAWS + 1


def test_no_curve_of_single_images_or_of_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert curve_of_images(table([1, 1], 1), table([4, 4], 2), CPU, 0) is None
    monkeypatch.setattr(learning_curve, "MOST", 10)
    assert curve_of_images(table([6, 6], 1), table([4, 4], 2), CPU, 0) is None


def test_shots_make_a_curve_whose_gain_is_paired() -> None:
    draws = {5: (30.0, 40.0, 50.0), 1: (20.0, 24.0, 31.0), 2: (22.0, 31.0, 42.0)}
    curve = curve_of_shots([(k, Interval.of(values)) for k, values in draws.items()])
    assert curve and [point.images for point in curve.points] == [1, 2, 5] and curve.novel
    assert curve.gain == Interval.paired(draws[5], draws[2]) and curve.gain.mean == pytest.approx(25 / 3)
    assert curve.to_json()["points"][2] == {"images": 5, **Interval.of(draws[5]).to_json()}
    assert curve_of_shots([(1, Interval.of([3.0]))]) is None
