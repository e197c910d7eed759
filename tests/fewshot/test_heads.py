"""Each head against a slow, obvious implementation of its formula, in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from samples import activations, prepare
from scipy.linalg import eigh
from scipy.stats import multivariate_normal

from dist_train.config import LearnConfig
from dist_train.data.activations import Activations
from dist_train.fewshot import methods
from dist_train.fewshot.calibration import Calibrated, calibrated, sample
from dist_train.fewshot.head import Head
from dist_train.fewshot.method import Base, Method
from dist_train.fewshot.methods import fecam
from dist_train.fewshot.methods.phi_plus import PhiPlus
from dist_train.fewshot.methods.ranpac import RandomFeatures
from dist_train.fewshot.moments import Moments
from dist_train.training import checkpoint

Array = npt.NDArray[np.float64]
DIM, OLD, NEW = 5, 3, 2


def base(counts: tuple[int, ...] = (4, 6, 5), **numbers: float) -> Base:
    torch.manual_seed(1)
    noise = activations([*counts], dim=DIM, seed=3)
    apart = np.random.default_rng(4).random((len(counts), DIM)) * 3
    train = replace(noise, rows=(noise.rows + apart[noise.labels]).astype(np.float16))
    return prepare(
        train,
        means=torch.from_numpy(train.means()),
        rows=torch.randn(len(counts), DIM),
        bias=torch.randn(len(counts)),
        numbers={**methods.NUMBERS, **numbers},
    )


@cache
def support() -> torch.Tensor:
    return torch.from_numpy((2 * np.random.default_rng(7).random((NEW, 3, DIM))).astype(np.float32))


@cache
def queries() -> torch.Tensor:
    return torch.from_numpy((3 * np.random.default_rng(8).random((7, DIM))).astype(np.float32))


def scores(name: str, given: Base) -> Array:
    """Return the scores [Q, base and novel classes] before their calibration."""
    method = methods.make(name, given)
    assert isinstance(method, Head)
    both = torch.cat([method.base_scores(queries()), method.novel_scores(support())(queries())], 1)
    return both.double().numpy()


def unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def images(given: Base) -> list[list[Array]]:
    """Return the activations of each base class."""
    offsets = given.train.offsets
    rows = given.train.rows.astype(np.float64)
    return [[*rows[first:last]] for first, last in pairwise(offsets)]


def centred(given: Base, power: float) -> tuple[list[list[Array]], list[list[Array]], list[Array]]:
    """Return the images of each base class, the supports of each novel class and the queries, centred."""
    centre = sum(unit(mean.astype(np.float64) ** power) for mean in given.means.numpy()) / len(given.means)

    def change(image: Array) -> Array:
        return unit(unit(np.sign(image) * np.abs(image) ** power) - centre)

    return (
        [[change(image) for image in of_class] for of_class in images(given)],
        [[change(image) for image in of_class] for of_class in support().double().numpy()],
        [change(query) for query in queries().double().numpy()],
    )


def covariances(classes: list[list[Array]], within: float, between: float) -> tuple[Array, Array, Array]:
    """Return Sw and Sb, without the bias of few images and shrunk, and the mean of the class means."""
    means = [sum(of_class) / len(of_class) for of_class in classes]
    centre = sum(means) / len(means)
    sw = sum(
        sum(np.outer(x - m, x - m) for x in of_class) / len(of_class)
        for of_class, m in zip(classes, means, strict=True)
    ) / len(classes)
    share = sum(1 / len(of_class) for of_class in classes) / len(classes)
    sw = sw / (1 - share)
    sb = sum(np.outer(m - centre, m - centre) for m in means) / len(means) - share * sw

    def shrink(matrix: Array, strength: float) -> Array:
        return (1 - strength) * matrix + strength * np.trace(matrix) / DIM * np.eye(DIM)

    return shrink(sw, within), shrink(sb, between), centre


def test_moments_are_those_of_loops_over_images() -> None:
    given = base()
    moments = Moments.of(given.train, torch.device("cpu"))
    means = [sum(of_class) / len(of_class) for of_class in images(given)]
    sw, sb, centre = covariances(images(given), 0, 0)
    within = sum(np.cov(np.transpose(of_class), ddof=0) for of_class in images(given)) / OLD
    for ours, wanted in [(moments.means, means), (moments.within, within), (moments.centre, centre),
                         (moments.drawn, sw), (moments.between, sb)]:  # fmt: skip
        np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-6)
    left_out = Moments.of(given.train, torch.device("cpu"), left_out=np.array([0, 5]), transform=lambda x: 2 * x)
    np.testing.assert_allclose(left_out.means[0], 2 * sum(images(given)[0][1:]) / 3, atol=1e-5)
    assert left_out.counts.tolist() == [3, 5, 5]


def test_few_images_give_the_covariances_that_they_were_drawn_with() -> None:
    rng, counts = np.random.default_rng(0), np.tile([2, 3, 5], 2000)
    sw, sb = np.array([[4.0, 1.5], [1.5, 1.0]]), np.array([[0.5, -0.3], [-0.3, 1.0]])
    means = rng.multivariate_normal(np.zeros(2), sb, len(counts)).repeat(counts, 0)
    rows = (means + rng.multivariate_normal(np.zeros(2), sw, len(means))).astype(np.float16)
    table = Activations(rows, np.arange(len(rows)), np.concatenate([[0], np.cumsum(counts)]))
    moments = Moments.of(table, torch.device("cpu"))
    np.testing.assert_allclose(moments.drawn, sw, atol=0.1)
    np.testing.assert_allclose(moments.between, sb, atol=0.1)  # half of sw / n was left in it by n in place of n - 1
    alone = Activations(rows[:9], np.arange(9), np.arange(10))
    assert Moments.of(alone, torch.device("cpu")).drawn.abs().max() < 1e-8  # an image a class says nothing of it


@pytest.mark.parametrize("counts", [[2, *[1] * 99], [2, 2, 2, *[1] * 97], [3, *[2] * 9, *[1] * 90], [40, *[1] * 99]])
def test_few_classes_with_several_images_do_not_make_a_few_directions_all_that_varies(counts: list[int]) -> None:
    """Fewer degrees of freedom than dimensions: what is measured has a few directions, far too long."""
    rng, dim = np.random.default_rng(0), 64
    true = np.diag(np.linspace(0.5, 1.5, dim))
    means = rng.normal(0, 1, (len(counts), dim)).repeat(counts, 0)
    errors = []
    for _ in range(20):
        rows = (means + rng.multivariate_normal(np.zeros(dim), true, len(means))).astype(np.float16)
        table = Activations(rows, np.arange(len(rows)), np.concatenate([[0], np.cumsum(counts)]))
        moments = Moments.of(table, torch.device("cpu"))
        assert moments.freedom < dim
        errors.append(np.linalg.norm(moments.drawn.numpy() - true) / np.linalg.norm(true))
        assert np.linalg.eigvalsh(moments.drawn.numpy()).max() < 4  # of at most 1.5; the pair's own direction had 64
    assert np.mean(errors) < 0.8  # was 1.2 to 7.7 without the shrinkage


def test_degrees_of_freedom_are_those_of_equal_classes() -> None:
    moments = Moments(torch.zeros(7, 3), torch.zeros(3, 3), torch.full((7,), 5.0))
    assert moments.freedom.item() == pytest.approx(7 * 4)
    assert Moments(torch.zeros(7, 3), torch.zeros(3, 3), torch.ones(7)).freedom.item() == 0


def test_one_pass_serves_all_heads_and_other_options_take_another() -> None:
    passes = []

    def watch(classes: object) -> object:
        passes.append(classes)
        return classes

    given = prepare(**{**vars(base()), "watch": watch})
    for name in ("gda", "plda", "plda_own"):
        methods.make(name, given)
    assert len(passes) == 1
    methods.make("centred", prepare(**{**vars(given), "numbers": {**given.numbers, "head_power": 0.7}}))
    assert len(passes) == 2


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_discriminant_by_inversion(power: float) -> None:
    given = base(plda_power=power, within_shrinkage=0.2)
    old, new, asked = centred(given, power)
    precision = np.linalg.inv(covariances(old, 0.2, 0.5)[0])
    means = [sum(of_class) / len(of_class) for of_class in (*old, *new)]
    wanted = np.array([[m @ precision @ q - m @ precision @ m / 2 for m in means] for q in asked])
    ours = scores("gda", given)
    shift = (ours - wanted).mean(1, keepdims=True)  # what all classes of a query share
    np.testing.assert_allclose(ours - shift, wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["plda", "plda_own"])
def test_posterior_by_inversion(name: str) -> None:
    given = base(plda_power=0.5, within_shrinkage=0.2, between_shrinkage=0.6)
    old, new, asked = centred(given, 0.5)
    sw, sb, centre = covariances(old, 0.2, 0.6)
    wanted = np.empty((len(asked), OLD + NEW))
    for column, of_class in enumerate((*old, *new)):
        k, mean = len(of_class), sum(of_class) / len(of_class)
        spread = np.linalg.inv(k * np.linalg.inv(sw) + np.linalg.inv(sb))
        middle = spread @ (k * np.linalg.inv(sw) @ mean + np.linalg.inv(sb) @ centre)
        wanted[:, column] = multivariate_normal(middle, sw + spread).logpdf(asked)
    ours = scores(name, given)
    np.testing.assert_allclose(ours - (ours - wanted).mean(), wanted, atol=1e-3)


def test_posterior_beside_rows_keeps_the_classifiers_answers_and_the_densities_balance() -> None:
    given = base(plda_temperature=3.0)
    densities, ours = scores("plda", given) / 3, scores("plda_rows", given)
    logits = queries().double().numpy() @ given.rows.double().numpy().T + given.bias.double().numpy()
    for of_query, d, z in zip(ours, densities, logits, strict=True):
        np.testing.assert_allclose(of_query[OLD:], d[OLD:], atol=1e-4)
        old = np.log(np.exp(d[:OLD]).sum()) + z - np.log(np.exp(z).sum())
        np.testing.assert_allclose(of_query[:OLD], old, atol=1e-4)


def test_posterior_beside_phi_plus_answers_as_phi_plus_among_base_classes(learned: Path) -> None:
    given = replace(base(), learn=learned, options=LearnConfig(identity_init=False))
    with torch.inference_mode():
        ours, plus = (methods.make(name, given).base_scores(queries()) for name in ("plda_plus", "phi_plus"))
        assert torch.allclose(ours.log_softmax(1), plus.log_softmax(1), atol=1e-4)
        densities = methods.make("plda_rows", given)
        assert torch.allclose(ours.logsumexp(1), densities.base_scores(queries()).logsumexp(1), atol=1e-3)


def test_fewer_supports_make_a_wider_density() -> None:
    method = methods.make("plda_own", base())
    few, many = (method.take(support()[:, :1].repeat(1, k, 1)) for k in (1, 9))
    far, near = queries() * torch.tensor([1.0, -4, 2, 3, -1]), support()[:, 0]
    assert (few(far) > many(far)).all() and (few(near).diag() < many(near).diag()).all()


def test_centred_means() -> None:
    given = base(head_power=0.7)
    old, new, asked = centred(given, 0.7)
    wanted = [[unit(q) @ unit(sum(of_class)) for of_class in (*old, *new)] for q in asked]
    np.testing.assert_allclose(scores("centred", given), wanted, atol=1e-5)


def moved(given: Base, image: Array, weight: float, temperature: float) -> Array:
    """Return an image or a mean after TEEN's calibration."""
    own = [unit(mean.astype(np.float64)) for mean in given.means.numpy()]
    heights = np.exp([temperature * unit(image) @ mean for mean in own])
    towards = sum(height * mean for height, mean in zip(heights / heights.sum(), own, strict=True))
    return (1 - weight) * unit(image) + weight * unit(towards)


def test_teen_moves_novel_means_alone() -> None:
    given = base(teen_weight=0.4, teen_temperature=8.0)
    rows = [*given.means.double().numpy()]
    rows += [moved(given, of_class.mean(0), 0.4, 8.0) for of_class in support().double().numpy()]
    wanted = [[unit(q) @ unit(row) for row in rows] for q in queries().double().numpy()]
    np.testing.assert_allclose(scores("teen", given), wanted, atol=1e-5)


def test_done_has_the_distribution_of_the_trained_rows_in_the_order_of_the_activation() -> None:
    given = base()
    weights = given.rows.double().numpy().flatten()
    quantiles = np.quantile(weights, (np.arange(DIM) + 0.5) / DIM)
    wanted = np.empty((NEW, DIM))
    for row, of_class in zip(wanted, support().double().numpy(), strict=True):
        row[np.argsort(of_class.mean(0))] = quantiles
    ours = scores("quantile", given)
    np.testing.assert_allclose(
        ours[:, OLD:], queries().double().numpy() @ wanted.T + given.bias.mean().item(), atol=1e-5
    )
    np.testing.assert_allclose(ours[:, :OLD], queries() @ given.rows.T + given.bias, atol=1e-6)


def correlation(covariance: Array, ridge: float) -> Array:
    matrix = covariance + ridge * np.eye(DIM)
    return matrix / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))


def test_fecam_by_inversion() -> None:
    given = base(plda_power=0.7, fecam_ridge=0.5, teen_weight=0.4, teen_temperature=8.0)
    old, new, asked = centred(given, 0.7)
    length = sum(np.linalg.norm(sum(of_class) / len(of_class)) for of_class in old) / OLD
    sw, sb, centre = covariances(old, given.numbers["within_shrinkage"], given.numbers["between_shrinkage"])
    basis = eigh(sb, sw)[1]  # within: the identity, between: diagonal
    old, new = ([[(x - centre) @ basis for x in of_class] for of_class in classes] for classes in (old, new))
    own = [np.cov(np.transpose(of_class), ddof=0) for of_class in old]
    middle = sum(unit(m.astype(np.float64) ** 0.7) for m in given.means.numpy()) / OLD
    means = [sum(of_class) / len(of_class) for of_class in old]
    for of_class, shown in zip(support().double().numpy(), new, strict=True):
        heights = np.exp([8.0 * unit(of_class.mean(0)) @ unit(m.astype(np.float64)) for m in given.means.numpy()])
        likely = sum(h * c for h, c in zip(heights / heights.sum(), own[:OLD], strict=True))
        own.append(likely + np.cov(np.transpose(shown), ddof=1))
        prototype = moved(given, of_class.mean(0), 0.4, 8.0)
        means.append((length * unit(unit(prototype**0.7) - middle) - centre) @ basis)
    inverse = [np.linalg.inv(correlation(c, 0.5)) for c in own]
    points = [(q - centre) @ basis for q in asked]
    wanted = [[-(q - m) @ i @ (q - m) for m, i in zip(means, inverse, strict=True)] for q in points]
    np.testing.assert_allclose(scores("fecam", given), wanted, rtol=1e-3, atol=1e-3)


def test_fecam_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = base(fecam_ridge=0.5)
    whole = scores("fecam", given)
    for name, size in (("_CLASSES", 2), ("_COLUMNS", 2), ("_QUERIES", 3)):  # of 3 and 2, of 5, of 7
        monkeypatch.setattr(fecam, name, size)
    np.testing.assert_allclose(scores("fecam", given), whole, rtol=1e-5, atol=1e-5)


def test_ranpac_is_ridge_on_random_features_and_draws() -> None:
    given = base(ranpac_features=9, ranpac_draws=4000)
    method = RandomFeatures("ranpac", given)
    projection = method.projection.double().numpy()

    def features(image: Array) -> Array:
        return np.maximum(unit(image) @ projection, 0)

    def fit(classes: list[Array], ridge: float, unit_of: float) -> Array:
        """Return weights [M, classes] for features [n, M] of each class."""
        grams = [f.T @ f / len(f) for f in classes]
        penalty = ridge * unit_of * np.eye(9)
        return np.linalg.solve(sum(grams) + penalty, np.stack([f.mean(0) for f in classes], 1))

    every = [np.array([features(x) for x in of_class]) for of_class in images(given)]
    drawn = method.drawn(support())
    every += [np.maximum(d.double().numpy() @ projection, 0) for d in drawn]
    diagonal = np.trace(sum(f.T @ f / len(f) for f in every)) / 9
    wanted = np.array([features(q) for q in queries().double().numpy()]) @ fit(every, method.ridge, diagonal)
    np.testing.assert_allclose(method.take(support())(queries()), wanted, rtol=3e-3, atol=3e-3)
    # The draws have TEEN's mean, and half the covariance of likely base classes with half of the supports'.
    unit_images = [np.array([unit(x) for x in of_class]) for of_class in images(given)]
    length = np.mean([np.linalg.norm(x.mean(0)) for x in unit_images])
    for of_class, of_draws in zip(support().double().numpy(), drawn.double().numpy(), strict=True):
        shown = np.array([unit(x) for x in of_class])
        weights = method.move.weights(torch.from_numpy(shown.mean(0)).float()).double().numpy()
        towards = unit(moved(given, shown.mean(0), method.move.weight, method.move.temperature))
        np.testing.assert_allclose(of_draws.mean(0), length * towards, atol=0.02)
        likely = sum(w * np.cov(x.T, ddof=0) for w, x in zip(weights, unit_images, strict=True))
        np.testing.assert_allclose(np.cov(of_draws.T), (likely + np.cov(shown.T)) / 2, atol=0.01)


def test_ranpac_takes_the_power_of_ten_that_is_best_on_held_out_images() -> None:
    given = base((10, 15, 20), ranpac_features=40)
    method = RandomFeatures("ranpac", given)
    kept, held_out = [], []
    for of_class in images(given):
        features = np.maximum(np.array([unit(x) for x in of_class]) @ method.projection.double().numpy(), 0)
        apart = np.arange(len(features)) % 5 == 4
        kept.append((features[~apart], len(features)))
        held_out.append((features[apart], len(features)))
    gram, targets = sum(f.T @ f / n for f, n in kept), np.stack([f.sum(0) / n for f, n in kept])
    errors = {}
    for power in range(-6, 2):
        weights = np.linalg.solve(gram + 10.0**power * np.trace(gram) / 40 * np.eye(40), targets.T)
        errors[10.0**power] = sum(((f @ weights - np.eye(OLD)[y]) ** 2).sum() / n for y, (f, n) in enumerate(held_out))
    assert method.ridge == min(errors, key=lambda ridge: errors[ridge])


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    """Return a folder with a trained phi+."""
    torch.manual_seed(0)
    model = PhiPlus(torch.randn(OLD, DIM), LearnConfig(identity_init=False))
    checkpoint.save(tmp_path / "phi_plus" / "final", {"model": model.state_dict()}, {})
    return tmp_path


def test_held_rows_minimise_the_loss_with_a_prior_about_those_of_phi_plus(learned: Path) -> None:
    given = replace(
        base(held_lr=0.01, held_steps=5, held_decay=0.5), learn=learned, options=LearnConfig(identity_init=False)
    )
    with torch.inference_mode():
        plus = methods.make("phi_plus", given)
        bias = torch.cat([torch.zeros(OLD), plus.take(support())(queries())[0] - _raw(plus, 0)])
        rows = torch.cat([plus.base_rows, plus.phi.novel_rows(support(), "max")[:, 0]])  # type: ignore[attr-defined]
        method = methods.make("phi_plus_held", given)
        ours = method.take(support())(queries())
    start, bias = rows.clone(), bias.clone().requires_grad_()
    rows = rows.clone().requires_grad_()
    sgd, rng = torch.optim.SGD([rows, bias], lr=0.01, momentum=0.9), np.random.RandomState(0)
    for step in range(5):
        picked = method._base_rows(rng)  # type: ignore[attr-defined]
        x, y = torch.from_numpy(given.train.rows[picked]).float(), torch.from_numpy(given.train.labels[picked])
        of_base = F.cross_entropy(20 * F.normalize(x, dim=1) @ rows.T + bias, y)
        shown, novel = F.normalize(support().flatten(0, 1), dim=1), torch.tensor([3, 3, 3, 4, 4, 4])
        of_novel = F.cross_entropy(20 * shown @ rows.T + bias, novel)
        sgd.zero_grad()
        (0.6 * of_base + 0.4 * of_novel + 0.25 * (rows - start).square().sum()).backward()
        sgd.param_groups[0]["lr"] = 0.01 * (1 - step / 5)
        sgd.step()
    assert torch.allclose(ours, 20 * F.normalize(queries(), dim=1) @ rows.T + bias, atol=1e-3)


def _raw(plus: Method, query: int) -> torch.Tensor:
    """Return the novel scores [classes] of a query without their calibration."""
    rows = plus.phi.novel_rows(support(), "max")[:, 0]  # type: ignore[attr-defined]
    scores: torch.Tensor = plus.phi.query(queries()[query : query + 1]) @ rows.T  # type: ignore[attr-defined]
    return scores[0]


def test_ensembles_average_calibrated_logits_and_calibrate_again(learned: Path) -> None:
    given = replace(base((40, 60, 50), logistic_steps=3), learn=learned, options=LearnConfig(identity_init=False))
    with torch.inference_mode():
        for second, name in (("plda_plus", "phi_plus_plda"), ("logistic", "phi_plus_logistic")):
            members = [calibrated(methods.make(member, given), given) for member in ("phi_plus", second)]
            pictures, labels = sample(given.train, torch.device("cpu"))
            average = sum(of_all(member, torch.cat([queries(), pictures])) for member in members) / 2
            wanted, of_pictures = average[:7], average[7:]
            old, new = of_pictures[:, :OLD], of_pictures[:, OLD:]
            margins = (old.amax(1) - new.amax(1))[old.argmax(1) == labels].sort().values
            wanted[:, OLD:] += margins[int(0.3 * NEW / (OLD + NEW) * len(margins))]
            assert torch.allclose(of_all(methods.make(name, given), queries()), wanted, atol=1e-4), name


def of_all(method: Method, asked: torch.Tensor) -> torch.Tensor:
    """Return the scores [Q, base and novel classes] of queries [Q, C]."""
    scored = method.take(support())(asked)
    return scored if method.moves_base else torch.cat([method.base_scores(asked), scored], 1)


@pytest.mark.parametrize("name", ["plda", "plda_own", "ridge"])  # ridge moves the base classes
def test_calibrated_costs_the_allowed_share_and_twice_changes_nothing(name: str) -> None:
    given = base((40, 60, 50), calibration_cost=0.5)
    method = calibrated(methods.make(name, given), given)
    assert calibrated(method, given) is method and isinstance(method, Calibrated) == (name != "plda")
    twice = Calibrated(method, given).take(support())
    pictures, labels = sample(given.train, torch.device("cpu"))
    scorer = method.take(support())
    new = scorer(pictures)
    old = new[:, :OLD] if method.moves_base else method.base_scores(pictures)
    new = new[:, -NEW:]
    right = old.argmax(1) == labels
    lost = int((new.amax(1) > old.amax(1))[right].sum())
    share = int(0.5 * 2 / 5 * int(right.sum()))
    assert right.sum() > 10 and lost in (share, share + 1)  # rounding decides about the image at the border
    assert torch.allclose(scorer(queries()), twice(queries()), atol=1e-3)


def test_a_calibration_that_supports_move_scores_every_image_once() -> None:
    given = base((40, 60, 50))
    method = methods.make("ridge", given)
    scorer, asked = method.take(support()), []

    def watched(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return scorer(images)

    method.take = lambda support: watched  # type: ignore[method-assign]
    Calibrated(method, given).take(support())
    assert asked == [60]


def test_queries_are_embedded_once(learned: Path) -> None:
    """By every head, for base classes, for all supports, and for the images of the calibration."""
    given = replace(base((40, 60, 50)), learn=learned, options=LearnConfig(identity_init=False))
    kinds = {"centred": "of_queries", "plda": "of_queries", "phi_plus": "query", "nn": "embed_queries",
             "ranpac": "query_features"}  # fmt: skip
    with torch.inference_mode():
        for name, attribute in kinds.items():
            method, asked = methods.make(name, given), queries().clone()
            of_all(method, asked)
            before = getattr(method, attribute).cache_info().misses
            for shift in (1, 2):
                method.take(support() + shift)(asked)
            assert getattr(method, attribute).cache_info().misses == before, name


@pytest.mark.parametrize("name", [
    "phi_plus_teen", "phi_plus_held", "phi_plus_logistic", "phi_plus_plda", "plda_plus", "finetune", "logistic",
    "child",
])  # fmt: skip
def test_several_numbers_of_shots_together_are_each_alone(name: str, learned: Path) -> None:
    steps = {f"{key}_steps": 3.0 for key in ("held", "finetune", "logistic", "child")}
    given = replace(base((40, 60, 50), **steps), learn=learned, options=LearnConfig(identity_init=False))
    shots = [1, 2, 3]
    with torch.inference_mode():
        method = methods.make(name, given)
        for k, scorer in zip(shots, method.take_first(support(), shots), strict=True):
            alone = methods.make(name, given).take(support()[:, :k])
            assert torch.allclose(scorer(queries()), alone(queries()), atol=1e-5), k
