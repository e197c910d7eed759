"""Heads of photos alone: what they give, how they judge themselves, and how classes of unequal sizes compete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from dist_train import UserError
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.heads.choice import HEADS, choose, mean_accuracy
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


@dataclass(frozen=True)
class SlowDiscriminant:
    """Do what the discriminant says that it does, by matrices, with one shrinkage."""

    shrinkage: float
    background: Background | None

    def scatter(self, sample: Sample) -> tuple[torch.Tensor, int]:
        own, other = Background.of(sample), self.background
        return (own.scatter + other.scatter, own.freedom + other.freedom) if other else (own.scatter, own.freedom)

    def identity(self, sample: Sample) -> torch.Tensor:
        scatter, freedom = self.scatter(sample)
        return self.shrinkage * scatter.trace() / DIM / freedom * torch.eye(DIM).double()

    def within(self, sample: Sample, identity: torch.Tensor) -> torch.Tensor:
        scatter, freedom = self.scatter(sample)
        return (1 - self.shrinkage) * scatter / freedom + identity

    def ridge(self, by_class: list[torch.Tensor]) -> float:
        """Return r: an analysis of variance of the activations in the metric of V."""
        sample, chances = Sample.of(by_class), []
        identity = self.identity(sample)
        for label, place in places(by_class):
            rest, n = without(by_class, label, place), len(by_class[label])
            gap = by_class[label][place] - rest.means()[label]
            chances.append((n - 1) / n * float(gap @ torch.linalg.inv(self.within(rest, identity)) @ gap))
        within = self.within(sample, identity)
        gaps = sample.means() - sample.activations.mean(0)
        seen = float((sample.counts * (gaps @ torch.linalg.inv(within) * gaps).sum(1)).sum())
        photos = float(sample.counts.sum())
        between = max(seen - (len(by_class) - 1) * float(np.mean(chances)), seen / 2)
        return float(within.trace()) * (photos - float(sample.counts.square().sum()) / photos) / between

    def centre(self, sample: Sample, within: torch.Tensor, ridge: float) -> torch.Tensor:
        """Return the mean of the class means that is likeliest (generalised least squares)."""
        precisions = [torch.linalg.inv(within @ within / ridge + within / n) for n in sample.counts]
        pairs = zip(precisions, sample.means(), strict=True)
        return torch.linalg.inv(sum(precisions)) @ sum(precision @ mean for precision, mean in pairs)

    def scores(
        self, query: torch.Tensor, sample: Sample, of_all: tuple[torch.Tensor, float, torch.Tensor]
    ) -> torch.Tensor:
        """Return the scores [classes] of a query.

        Args:
            query: an activation.
            sample: the photos that are fitted.
            of_all: the multiple of the identity, r and the centre of these photos.
        """
        identity, ridge, centre = of_all
        within, found = self.within(sample, identity), []
        between, precision = within @ within / ridge, torch.linalg.inv(within)
        for mean, n in zip(sample.means(), sample.counts, strict=True):
            expected = between @ torch.linalg.inv(between + within / n) @ (mean - centre)  # the posterior mean
            found.append((query - centre) @ precision @ expected - expected @ precision @ expected / 2)
        return torch.stack(found)


def places(by_class: list[torch.Tensor]) -> list[tuple[int, int]]:
    """Return (class, place) of each photo whose class has others."""
    return [(label, place) for label, photos in enumerate(by_class) for place in range(len(photos)) if len(photos) > 1]


@pytest.mark.parametrize(
    ("counts", "others", "scale"), [([6, 2, 10], 0, 1), ([6, 2, 10], 50, 1), ([1, 7, 3, 7], 0, 1), ([4, 3, 5], 0, 0.01)]
)
def test_the_discriminant_is_the_posterior_of_a_slow_one(counts: list[int], others: int, scale: float) -> None:
    """The model's scores of any photo, and those of each photo that is left out. The last case is one in which chance
    explains all that is seen of the classes."""
    by_class = clusters(counts, scale=scale)
    background = Background.of(Sample.of(clusters([others] * 2, seed=5))) if others else None
    sample = Sample.of(by_class)
    fit = fit_of("lda", sample, background)
    assert fit.strength
    slow = SlowDiscriminant(fit.strength, background)
    ridge = slow.ridge(by_class)
    identity = slow.identity(sample)
    of_all = identity, ridge, slow.centre(sample, slow.within(sample, identity), ridge)
    for query in torch.cat(clusters([2] * len(counts), seed=3)):
        assert torch.allclose(scores(fit, query[None])[0], slow.scores(query, sample, of_all), atol=1e-8)
    held_out = iter(fit.held_out[sample.judged])
    scatter, freedom = slow.scatter(sample)
    fewer = (1 - fit.strength) * scatter / (freedom - 1) + identity
    for label, place in places(by_class):
        rest = without(by_class, label, place)
        wanted = slow.scores(by_class[label][place], rest, (identity, ridge, slow.centre(rest, fewer, ridge)))
        assert torch.allclose(next(held_out), wanted, atol=1e-8), (label, place)


def test_of_many_photos_the_discriminant_is_that_of_scikit_learn() -> None:
    by_class = clusters([4000] * 4)
    fit, sample = fit_of("lda", Sample.of(by_class)), Sample.of(by_class)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=fit.strength, priors=np.full(4, 0.25))
    peer.fit(sample.activations.numpy(), sample.labels.numpy())
    queries = torch.cat(clusters([20] * 4, seed=3))
    ours, theirs = scores(fit, queries), torch.from_numpy(peer.decision_function(queries.numpy()))
    ours, theirs = (each - each.mean(1, keepdim=True) for each in (ours, theirs))
    assert float((ours - theirs).abs().max() / theirs.std()) < 0.02


@pytest.mark.parametrize("few", [5, 1])
def test_classes_of_few_photos_compete_as_by_the_rule_of_bayes(few: int) -> None:
    """Of twelve equally hard classes, half have few photos and half two hundred. The rule of Bayes, which knows how
    classes and photos vary, is right about most photos; the discriminant, which measures that, is nearly as often.
    Were the squared length of a mean only reduced by its variance, as that of the class mean is, large classes would
    lose so much to small ones that 7 points fewer were right with five photos, and 27 points with one."""
    ours, best, counts = [], [], [200] * 6 + [few] * 6
    for shown, fresh in unequal(counts):
        sample, queries = Sample.of(shown), fresh.flatten(0, 1)
        n, means = sample.counts, sample.means()
        keep = n * 0.35**2 / (n * 0.35**2 + 1)
        variance = 1 + keep / n
        distances = (queries[:, None] - keep[:, None] * means).square().sum(2)
        best.append(rates(-distances / variance - 60 * variance.log()))
        ours.append(rates(scores(choose(sample, ["lda"]).fit, queries)))
    lost = torch.stack(best).mean(0) - torch.stack(ours).mean(0)
    assert float(lost.mean()) < 3.5 and float(lost[6:].mean()) < 5, lost


def test_class_means_of_few_photos_compete_fairly() -> None:
    """Without its correction the class mean loses over 20 points of the small classes to the large ones."""
    gaps = []
    for shown, fresh in unequal([200] * 6 + [5] * 6):
        found = rates(scores(choose(Sample.of(shown), ["mean"]).fit, fresh.flatten(0, 1)))
        gaps.append(float(found[:6].mean() - found[6:].mean()))
    assert abs(float(np.mean(gaps))) < 10, gaps


def unequal(counts: Sequence[int]) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """Yield six draws of classes that are equally hard: photos of each, and 200 fresh ones, [classes, 200, 60]."""
    for seed in range(6):
        centres = torch.randn(len(counts), 60, generator=torch.Generator().manual_seed(seed)).double() * 0.35
        noise = torch.randn(2, len(counts), 200, 60, generator=torch.Generator().manual_seed(100 + seed)).double()
        shown, fresh = centres[:, None] + noise
        yield [photos[:n] for photos, n in zip(shown, counts, strict=True)], fresh


def rates(scores: torch.Tensor) -> torch.Tensor:
    """Return the percentage of right answers of each class, [classes], of scores of 200 photos a class."""
    right = scores.argmax(1).view(scores.shape[1], -1) == torch.arange(scores.shape[1])[:, None]
    return 100 * right.double().mean(1)


def test_photos_that_do_not_differ_leave_the_discriminant_out() -> None:
    by_class = [rows.expand(3, -1) for rows in clusters([1, 1], scale=3)]
    assert choose(Sample.of(by_class), ["lda", "mean"]).head == "mean"
    with pytest.raises(UserError, match="--head lda: needs photos of a class that differ"):
        choose(Sample.of(by_class), ["lda"])


def test_what_the_discriminant_needs_is_what_its_line_says() -> None:
    """Two photos of one class beside one of another are too few; three, or two of both, are enough."""
    for counts in ([3, 1], [2, 2]):
        assert choose(Sample.of(clusters(counts)), ["lda"]).head == "lda"
    with pytest.raises(UserError, match="three of one class, or two of each of two"):
        choose(Sample.of(clusters([2, 1])), ["lda"])


@pytest.mark.parametrize("photos", [[4], [2, 2, 2], [1, 1], [3, 40, 7], [1] * 5 + [100] * 40])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_interval_of_an_estimate_stays_within_0_to_100(photos: list[int], share: float) -> None:
    labels = torch.arange(len(photos)).repeat_interleave(torch.tensor(photos))
    mean, low, high = mean_accuracy(torch.full((len(labels),), bool(share)), labels)
    assert mean == 100 * share and 0 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 100
    assert 1 < high - low < 100
    if len(set(photos)) == 1:  # as a single share of all photos
        wanted = binomtest(round(share * sum(photos)), sum(photos)).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((100 * wanted.low, 100 * wanted.high), abs=0.01)


@pytest.mark.parametrize("counts, truth", [([3, 5, 8, 13, 40, 40], (0.8, 1)), ([12] * 6 + [100] * 20, (0.7, 0.95))])
def test_the_interval_of_an_estimate_covers_the_truth(counts: list[int], truth: tuple[float, float]) -> None:
    """Classes of few photos are the harder ones, which makes the mean less certain than as many photos of all."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    shares = torch.linspace(*truth, len(counts))
    inside = []
    for _ in range(1000):
        _, low, high = mean_accuracy(torch.rand(len(labels), generator=generator) < shares[labels], labels)
        inside.append(low <= 100 * float(shares.mean()) <= high)
    assert 0.93 < sum(inside) / len(inside) < 0.98


@pytest.mark.parametrize("name", HEADS)
def test_the_same_photos_in_two_classes_still_give_numbers(name: str) -> None:
    photos = clusters([5])[0]
    fit = choose(Sample.of([photos, photos]), [name]).fit
    assert all(bool(tensor.isfinite().all()) for tensor in (fit.rows, fit.offset, fit.held_out))


def test_the_choice_is_the_best_on_held_out_photos_and_its_estimate_holds() -> None:
    counts = [40, 8, 40, 8, 40]
    choice = choose(Sample.of(clusters(counts)), list(HEADS))
    best = max(choice.estimates, key=lambda one: one.accuracy)
    assert choice.head == best.head and [one.head for one in choice.estimates] == list(HEADS)
    fresh = clusters([400] * 5, seed=11)
    right = [(scores(choice.fit, rows).argmax(1) == label) for label, rows in enumerate(fresh)]
    accuracy = 100 * float(torch.stack([one.double().mean() for one in right]).mean())
    assert abs(accuracy - best.accuracy) < best.high - best.low


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
    with pytest.raises(UserError, match="--head lda: needs photos of a class that differ") as caught:
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
    accuracy, low, high = mean_accuracy(right, labels)
    assert accuracy == 50 and (low, high) == (pytest.approx(41.5, abs=0.1), pytest.approx(58.5, abs=0.1))
