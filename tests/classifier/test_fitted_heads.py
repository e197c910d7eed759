"""Heads of photos alone: what they give, how they judge themselves, and how classes of unequal sizes compete."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from dist_train import UserError
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.heads.choice import HEADS, balanced_accuracy, choose
from dist_train.classifier.heads.contract import Background, Fit, Sample

DIM = 12


def clusters(counts: Sequence[int], seed: int = 0, scale: float = 1.0) -> list[torch.Tensor]:
    """Return photos of classes whose centres are fixed, and which vary along some axes more than along others."""
    centres = torch.randn(len(counts), DIM, generator=torch.Generator().manual_seed(7)).double() * scale
    draws = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.3, 2, DIM).double()
    return [
        3 + centre + spread * torch.randn(n, DIM, generator=draws).double()
        for centre, n in zip(centres, counts, strict=True)
    ]


def fit_of(name: str, sample: Sample, background: Background | None = None) -> Fit:
    """Return the fit of a middle strength."""
    fits = list(HEADS[name].fits(sample, background, None))
    return fits[len(fits) // 2]


def scores(fit: Fit, queries: torch.Tensor) -> torch.Tensor:
    return (torch.nn.functional.normalize(queries, dim=1) if fit.unit else queries) @ fit.rows.T + fit.offset


def without(by_class: list[torch.Tensor], label: int, place: int) -> Sample:
    rest = [*by_class]
    rest[label] = torch.cat([rest[label][:place], rest[label][place + 1 :]])
    return Sample.of(rest)


@pytest.mark.parametrize("name", ["mean", "imprint"])
def test_left_out_photos_are_scored_by_a_fit_without_them(name: str) -> None:
    by_class = clusters([5, 2, 9])
    fit, number = fit_of(name, Sample.of(by_class)), 0
    for label, photos in enumerate(by_class):
        for place in range(len(photos)):
            again = fit_of(name, without(by_class, label, place))
            wanted = scores(again, photos[place : place + 1])[0]
            assert torch.allclose(fit.held_out[number], wanted, atol=1e-10), (label, place)
            number += 1


@pytest.mark.parametrize("with_background", [False, True])
def test_left_out_photos_are_scored_by_a_discriminant_without_them(with_background: bool) -> None:
    """Compare with a slow discriminant; only tr(P S), a number of all photos, is taken from the fit."""
    by_class = clusters([6, 2, 10])
    background = Background.of(Sample.of(clusters([30, 20], seed=5))) if with_background else None
    sample = Sample.of(by_class)
    fit, number = fit_of("lda", sample, background), 0
    assert fit.strength
    spread = float((sample.counts * (2 * fit.offset + (fit.rows * sample.means()).sum(1)))[0])
    for label, photos in enumerate(by_class):
        for place in range(len(photos)):
            rest = without(by_class, label, place)
            means = rest.means()
            scatter = Background.of(rest).scatter + (background.scatter if background else 0)
            covariance = scatter / (rest.freedom + (background.freedom if background else 0))
            shrunk = (1 - fit.strength) * covariance + fit.strength * covariance.trace() / DIM * torch.eye(DIM)
            rows = means @ torch.linalg.inv(shrunk)
            wanted = photos[place] @ rows.T - ((rows * means).sum(1) - spread / rest.counts) / 2
            assert torch.allclose(fit.held_out[number], wanted, atol=1e-8), (label, place)
            number += 1


def test_the_discriminant_is_that_of_scikit_learn() -> None:
    """With classes of one size the correction shifts all scores alike."""
    by_class = clusters([8, 8, 8, 8])
    fit, sample = fit_of("lda", Sample.of(by_class)), Sample.of(by_class)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=fit.strength, priors=np.full(4, 0.25))
    peer.fit(sample.activations.numpy(), sample.labels.numpy())
    queries = torch.cat(clusters([20] * 4, seed=3))
    # scikit-learn divides the scatter by the photos, and not by the degrees of freedom: its scores are longer.
    ours = scores(fit, queries)
    theirs = torch.from_numpy(peer.decision_function(queries.numpy())) * sample.freedom / len(sample.labels)
    assert torch.allclose(ours - ours.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True), atol=1e-8)


@pytest.mark.parametrize("name", ["mean", "lda"])
def test_classes_of_few_photos_compete_fairly(name: str) -> None:
    """Of twelve equally hard classes, half have five photos and half two hundred. Without the correction of means, the
    discriminant and the class mean lose over 20 points of the small classes to the large ones."""
    gaps, counts = [], [200] * 6 + [5] * 6
    for seed in range(6):
        centres = torch.randn(12, 60, generator=torch.Generator().manual_seed(seed)).double() * 0.35
        noise = torch.randn(2, 12, 200, 60, generator=torch.Generator().manual_seed(100 + seed)).double()
        shown, fresh = centres[:, None] + noise
        choice = choose(Sample.of([photos[:n] for photos, n in zip(shown, counts, strict=True)]), [name])
        right = scores(choice.fit, fresh.flatten(0, 1)).argmax(1).view(12, 200) == torch.arange(12)[:, None]
        rates = 100 * right.double().mean(1)
        gaps.append(float(rates[:6].mean() - rates[6:].mean()))
    assert abs(float(np.mean(gaps))) < 10, gaps


def test_the_choice_is_the_best_on_held_out_photos_and_its_estimate_holds() -> None:
    counts = [40, 8, 40, 8, 40]
    choice = choose(Sample.of(clusters(counts)), list(HEADS))
    best = max(choice.estimates, key=lambda one: one.accuracy)
    assert choice.head == best.head and [one.head for one in choice.estimates] == list(HEADS)
    fresh = clusters([400] * 5, seed=11)
    right = [(scores(choice.fit, rows).argmax(1) == label) for label, rows in enumerate(fresh)]
    accuracy = 100 * float(torch.stack([one.double().mean() for one in right]).mean())
    assert abs(accuracy - best.accuracy) < 2 * best.half_width


def test_equal_heads_leave_the_choice_to_the_simplest() -> None:
    choice = choose(Sample.of(clusters([6, 6, 6], scale=40)), list(HEADS))
    assert {one.accuracy for one in choice.estimates} == {100.0} and choice.head == "mean"


@pytest.mark.parametrize("name", HEADS)
def test_probabilities_are_those_of_held_out_photos(name: str) -> None:
    """The mean probability of the answer is the share of right answers."""
    choice = choose(Sample.of(clusters([60] * 4, scale=0.5)), [name])
    queries = torch.cat(clusters([500] * 4, seed=2, scale=0.5))
    shares = scores(choice.fit, queries).softmax(1)
    right = (shares.argmax(1) == torch.arange(4).repeat_interleave(500)).double().mean()
    assert abs(float(shares.amax(1).mean() - right)) < 0.06


@pytest.mark.parametrize("name", HEADS)
def test_a_few_photos_without_an_error_do_not_make_answers_certain(name: str) -> None:
    choice = choose(Sample.of(clusters([3, 3], scale=30)), [name])
    shares = choice.fit.held_out.softmax(1).amax(1)
    assert choice.estimates[0].accuracy == 100 and 0.75 < float(shares.mean()) < 0.95  # Platt's 7 / 8


def test_classes_of_one_photo_take_part_but_are_not_judged() -> None:
    by_class = clusters([1, 6, 1, 7], scale=3)
    choice = choose(Sample.of(by_class), list(HEADS))
    assert scores(choice.fit, torch.cat([by_class[0], by_class[2]])).argmax(1).tolist() == [0, 2]
    head, _ = FittedHeads().make([], by_class)
    assert head.answers is not None and head.answers.sum(1).tolist() == [0, 6, 0, 7]


def test_single_photos_alone_give_class_means_without_an_estimate() -> None:
    by_class = clusters([1, 1, 1], scale=3)
    head, maker = FittedHeads().make([], [rows.float() for rows in by_class])
    assert maker.name == "mean" and head.estimates == ()
    assert head.scores(torch.cat(by_class).float()).argmax(1).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="--head lda: needs a class of two photos") as caught:
        FittedHeads("lda").make([], by_class)
    assert caught.value.kind == "photos.few"  # a visitor of the page meets it who removes photos


def test_a_change_keeps_the_head_and_its_strength() -> None:
    by_class = [rows.float() for rows in clusters([30, 30, 30, 9])]
    _, maker = FittedHeads("lda").make([], by_class[:3])
    head, again = maker.make([], by_class)
    assert (again.head, again.strength) == ("lda", maker.strength)
    straight, _ = FittedHeads("lda", maker.strength).make([], by_class)
    assert torch.equal(head.rows, straight.rows) and torch.equal(head.offset, straight.offset)


def test_a_background_tells_how_activations_vary() -> None:
    """With two photos a class, the covariance of other images is worth much."""
    by_class, fresh = clusters([2] * 6, seed=4), torch.cat(clusters([200] * 6, seed=9))
    labels = torch.arange(6).repeat_interleave(200)
    background = Background.of(Sample.of(clusters([40] * 6, seed=8)))
    rates = [
        float(
            (scores(choose(Sample.of(by_class), ["lda"], 0.05, other).fit, fresh).argmax(1) == labels).double().mean()
        )
        for other in (None, background)
    ]
    assert rates[1] > rates[0] + 0.05, rates


def test_every_class_counts_the_same_in_the_estimate() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    right = torch.cat([torch.ones(90), torch.zeros(10)]).bool()
    accuracy, half_width = balanced_accuracy(right, labels)
    assert accuracy == 50 and 0 < half_width < 10
