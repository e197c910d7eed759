"""The nearest image of each class, against a brute force in float64, on random and on adversarial activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dist_train.fewshot import nearest
from dist_train.fewshot.nearest import Rough, exact_largest, first_largest, largest_products

Made = tuple[torch.Tensor, list[torch.Tensor]]
CLASSES, TOP = 12, 5


def unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return F.normalize(torch.from_numpy(rng.random(shape).astype(np.float32) ** 3), dim=-1)


def spread(rng: np.random.Generator) -> Made:
    """Return queries near the classes' centres, as trained activations are."""
    centres = unit(rng, CLASSES, 96)
    images = [F.normalize(centre + 0.3 * unit(rng, rng.integers(1, 30), 96), dim=1) for centre in centres]
    queries = F.normalize(centres[rng.integers(0, CLASSES, 200)] + 0.5 * unit(rng, 200, 96), dim=1)
    return queries, images


def tied(rng: np.random.Generator) -> Made:
    """Return images that differ from the same vector by a few of float32's steps."""
    centre = unit(rng, 1, 64)
    images = [centre * (1 + 1e-7 * torch.from_numpy(rng.integers(-3, 4, (9, 64)))).float() for _ in range(CLASSES)]
    return torch.cat([centre, unit(rng, 50, 64)]), images


def duplicated(rng: np.random.Generator) -> Made:
    """Return the same images in all classes, in other orders, some of them many times."""
    images = unit(rng, 20, 48)
    return torch.cat([images, unit(rng, 50, 48)]), [images[rng.integers(0, 20, 40)] for _ in range(CLASSES)]


def cancelling(rng: np.random.Generator) -> Made:
    """Return vectors with numbers that bfloat16 rounds the same way, halfway between two of its values."""
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], (CLASSES * 8 + 60, 64)).astype(np.float32))
    vectors = F.normalize(
        signs * (1 + 2.0**-8 + 2.0**-12 * torch.from_numpy(rng.random(signs.shape).astype(np.float32)))
    )
    return vectors[:60], list(vectors[60:].view(CLASSES, 8, 64))


def tiny(rng: np.random.Generator) -> Made:
    """Return vectors that are far from unit length, and zeros."""
    queries, images = spread(rng)
    scales = [1e-12, 1e-6, 0.0, 1e-3, *[1.0] * (CLASSES - 4)]
    return queries * torch.logspace(-10, 0, len(queries))[:, None], [
        rows * scale for rows, scale in zip(images, scales, strict=True)
    ]


MADE = [spread, tied, duplicated, cancelling, tiny]


def brute_force(queries: torch.Tensor, images: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(queries.double() @ rows.double().T).amax(1) for rows in images], dim=1)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Let the device have its fastest products in this type; where it has not, they are emulated."""
    monkeypatch.setattr(nearest, "fastest_type", lambda device: request.param)
    result: torch.dtype = request.param
    return result


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("top", [1, TOP, CLASSES])
def test_the_highest_classes_are_those_of_a_brute_force(
    make: Callable[[np.random.Generator], Made], top: int, kind: torch.dtype
) -> None:
    for seed in range(5):
        queries, images = make(np.random.default_rng(seed))
        wanted = brute_force(queries, images)
        scores = largest_products(queries, lambda: iter(images), len(images), top)  # noqa: B023
        assert scores.dtype == torch.float32
        highest = wanted.float().topk(top, dim=1).values
        assert torch.equal(scores.topk(top, dim=1).values, highest)
        decides = wanted.float() >= highest[:, -1:]
        assert torch.equal(scores[decides], wanted.float()[decides])
        assert (scores[~decides] < highest[:, -1:].expand_as(scores)[~decides]).all()
        assert torch.equal(scores.argmax(1), wanted.float().argmax(1))  # the first of equals


@pytest.mark.parametrize("make", MADE)
def test_errors_stay_within_their_bounds(make: Callable[[np.random.Generator], Made], kind: torch.dtype) -> None:
    for seed in range(5):
        queries, images = make(np.random.default_rng(seed))
        rough = Rough.of(queries, lambda: iter(images), len(images), kind)  # noqa: B023
        scores, _ = rough.decisive(TOP)
        errors = (scores.double() - brute_force(queries, images)).abs()
        bounds = rough.bounds(slice(None))
        assert (errors <= bounds).all()
        if make is spread:  # and they are not loose: few classes are looked at again
            assert bounds.max() < {torch.float32: 1e-4, torch.bfloat16: 5e-3}[kind]
            assert rough.decisive(TOP)[1].double().mean() < 0.75


def test_few_classes_are_scored_twice(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, images = spread(np.random.default_rng(0))
    looked_at = []
    exact = nearest.exact_largest
    monkeypatch.setattr(nearest, "exact_largest", lambda q, rows: (looked_at.append(len(q)), exact(q, rows))[1])
    largest_products(queries, lambda: iter(images), CLASSES, 1)
    assert len(queries) <= sum(looked_at) < 1.5 * len(queries)


def test_without_a_number_of_decisive_classes_all_are_float32_products(kind: torch.dtype) -> None:
    queries, images = spread(np.random.default_rng(0))
    scores = largest_products(queries, lambda: iter(images), CLASSES, None)
    assert torch.equal(scores, torch.stack([(queries @ rows.T).amax(1) for rows in images], dim=1))


def test_numbers_that_are_not_finite_stay_so(kind: torch.dtype) -> None:
    queries, images = spread(np.random.default_rng(0))
    for bad in (float("nan"), float("inf")):
        broken = [rows.clone() for rows in images]
        broken[4][0, 3] = bad
        assert not largest_products(queries, lambda: iter(broken), CLASSES, TOP).isfinite().all()  # noqa: B023
    queries[7, 0] = float("nan")
    assert not largest_products(queries, lambda: iter(images), CLASSES, TOP)[7].isfinite().any()


def test_no_queries_and_many_at_a_time(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, images = spread(np.random.default_rng(0))
    assert largest_products(queries[:0], lambda: iter(images), CLASSES, TOP).shape == (0, CLASSES)
    whole = largest_products(queries, lambda: iter(images), CLASSES, TOP)
    monkeypatch.setattr(nearest, "_QUERIES", 7)
    monkeypatch.setattr(nearest, "_PAIRS", 3)
    parts = largest_products(queries, lambda: iter(images), CLASSES, TOP)
    highest = whole >= whole.topk(TOP, dim=1).values[:, -1:]
    assert torch.equal(parts[highest], whole[highest])
    assert torch.allclose(parts, whole, atol=1e-2)


def test_the_largest_of_the_first_supports() -> None:
    rng = np.random.default_rng(0)
    queries, rows = unit(rng, 30, 16), unit(rng, 4, 6, 16)
    found = first_largest(queries, rows, [5, 1, 2])
    for place, k in enumerate((5, 1, 2)):
        wanted = torch.stack([(queries @ rows[c, :k].T).amax(1) for c in range(4)], dim=1)
        assert torch.allclose(found[place], wanted, atol=1e-6)
    assert first_largest(queries, rows[:0], [2]).shape == (1, 30, 0)


def test_exact_products_tell_what_float32_cannot() -> None:
    query = torch.full((1, 4096), 1.0)
    images = torch.full((2, 4096), 1.0)
    images[1, 7] += 2.0**-20  # lost in a sum of 4096
    assert (query @ images.T)[0, 0] == (query @ images.T)[0, 1]
    largest = torch.empty(1)
    largest[0] = 4096 + 2.0**-20
    assert torch.equal(exact_largest(query, images), largest)
