"""How frequent the classes of a model of photos alone are taken to be: the rule, its estimates and its thresholds."""

from __future__ import annotations

import pytest
import torch
from test_fitted_heads import clusters

from dist_train import UserError
from dist_train.classifier.doubt_fit import Known, fitted_doubt
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.head import Head
from dist_train.classifier.heads.choice import HEADS, choose, mean_accuracy
from dist_train.classifier.heads.contract import Sample
from dist_train.report.per_class import wilson

COUNTS = [30, 3, 1, 12]


def shares(head: Head, queries: torch.Tensor) -> torch.Tensor:
    return head.probabilities(head.scores(queries))


@pytest.mark.parametrize("name", HEADS)
def test_probabilities_are_those_of_equal_classes_weighted_by_their_photos(name: str) -> None:
    by_class = [rows.float() for rows in clusters(COUNTS, scale=0.7)]
    queries = torch.cat(clusters([20] * 4, seed=3, scale=0.7)).float()
    equal, photos = (FittedHeads(name, prior=prior).make([], by_class)[0] for prior in ("equal", "photos"))
    for before, after in zip(shares(equal, queries).tolist(), shares(photos, queries).tolist(), strict=True):
        total = sum(share * count for share, count in zip(before, COUNTS, strict=True))
        wanted = [share * count / total for share, count in zip(before, COUNTS, strict=True)]
        assert after == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert torch.equal(equal.rows, photos.rows) and not torch.equal(equal.offset, photos.offset)


@pytest.mark.parametrize("name", HEADS)
def test_left_out_photos_are_judged_by_the_same_rule(name: str) -> None:
    """The estimate is the share of the judged photos that the rule answers rightly, and the threshold is of these."""
    sample = Sample.of(clusters(COUNTS, scale=0.5))
    equal, photos = (choose(sample, [name], prior=prior) for prior in ("equal", "photos"))
    weighted = equal.fit.held_out.softmax(1) * torch.tensor(COUNTS)
    weighted /= weighted.sum(1, keepdim=True)
    assert torch.allclose(photos.fit.held_out.softmax(1), weighted, atol=1e-10)
    right = (weighted.argmax(1) == sample.labels)[sample.judged]
    assert photos.estimates[0].accuracy == pytest.approx(100 * float(right.double().mean()))
    assert equal.estimates[0].strength == photos.estimates[0].strength
    head, _ = FittedHeads(name, prior="photos").make([], clusters(COUNTS, scale=0.5))
    assert head.answers is not None and float(head.answers.trace()) == float(right.sum())
    sure = weighted.amax(1)[sample.judged] >= head.doubt.threshold - 1e-9
    assert 0.95 <= float(sure.double().mean()) < 1


def test_classes_of_as_many_photos_have_one_answer_by_both_priors() -> None:
    by_class = [rows.float() for rows in clusters([9] * 4, scale=0.7)]
    queries = torch.cat(clusters([20] * 4, seed=3, scale=0.7)).float()
    (equal, first), (photos, second) = (FittedHeads(prior=prior).make([], by_class) for prior in ("equal", "photos"))
    assert torch.allclose(shares(equal, queries), shares(photos, queries), atol=1e-5)
    assert equal.doubt.threshold == pytest.approx(photos.doubt.threshold, abs=1e-6)
    assert (first.head, first.strength) == (second.head, second.strength)
    for before, after in zip(equal.estimates, photos.estimates, strict=True):
        assert (before.accuracy, before.low, before.high) == pytest.approx((after.accuracy, after.low, after.high))


def test_the_best_head_is_that_of_the_classes_as_frequent_as_they_are_taken_to_be() -> None:
    choice = choose(Sample.of(clusters([60, 4, 4], scale=0.4)), list(HEADS), prior="photos")
    assert choice.head == max(choice.estimates, key=lambda one: one.accuracy).head


def test_where_photos_say_how_frequent_classes_are_their_prior_is_right_more_often() -> None:
    by_class, fresh = (clusters([200, 10, 10], seed=seed, scale=0.3) for seed in (0, 9))
    rates = []
    for prior in ("equal", "photos"):
        head, _ = FittedHeads("lda", prior=prior).make([], [rows.float() for rows in by_class])
        right = [head.scores(rows.float()).argmax(1) == label for label, rows in enumerate(fresh)]
        rates.append(float(torch.cat(right).double().mean()))
    assert rates[1] > rates[0] + 0.02, rates


def test_every_photo_counts_the_same_in_the_estimate_and_in_the_thresholds() -> None:
    labels, counts = torch.tensor([0] * 90 + [1] * 10), torch.tensor([90.0, 10.0]).double()
    right = torch.arange(100) < 72
    accuracy, low, high = mean_accuracy(right, labels, counts)
    smooth = [73 / 92, 1 / 12]
    variance = sum((n / 100) ** 2 * p * (1 - p) / n for n, p in zip((90, 10), smooth, strict=True))
    likely = 0.9 * smooth[0] + 0.1 * smooth[1]
    assert accuracy == pytest.approx(72) and (low, high) == pytest.approx(wilson(72, likely * (1 - likely) / variance))
    scores = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    scores[labels == 1] *= 0.1  # the small class has the smallest probabilities
    doubt = fitted_doubt(Known(scores, torch.ones(100), labels), 1.0, counts)
    low = scores.double().softmax(1).amax(1) < doubt.threshold - 1e-9
    assert int(low.sum()) == 5 and int(low[labels == 1].sum()) >= 3  # where each class counts as much: at most one


def test_another_prior_is_refused() -> None:
    with pytest.raises(UserError, match="--prior often: give one of equal, photos"):
        FittedHeads(prior="often")
