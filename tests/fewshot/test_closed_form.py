"""Rows in closed form: scikit-learn's discriminant, least squares, and the choice between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from dist_train.data.activations import Activations
from dist_train.fewshot import closed_form
from dist_train.fewshot.closed_form import fit
from dist_train.fewshot.moments import Moments

CPU = torch.device("cpu")


def clusters(counts: list[int], dim: int, spread: float = 1.0) -> Activations:
    """Return normal clusters with a shared covariance that is far from round."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(dim, dim)) / np.sqrt(dim) * spread
    rows = [rng.normal(size=dim) + rng.normal(size=(count, dim)) @ mixing for count in counts]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Activations(np.concatenate(rows).astype(np.float16), np.arange(offsets[-1]), offsets)


def solved(table: Activations, kind: str, strength: float) -> tuple[np.ndarray, np.ndarray]:
    rows, bias = closed_form.rows_of(Moments.of(table, CPU), kind, strength)
    return rows.numpy(), bias.numpy()


@pytest.mark.parametrize("strength", [0.03, 0.4, 1.0])
def test_the_discriminant_is_scikit_learns(strength: float) -> None:
    table = clusters([12, 30, 7, 20, 9], dim=16)
    rows, bias = solved(table, "discriminant", strength)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=strength, priors=np.full(5, 0.2))
    # With the same weight for every class: scikit-learn weighs covariances by the priors, too.
    model.fit(table.rows.astype(np.float64), table.labels)
    ours = table.rows @ rows.T + bias
    theirs = table.rows @ model.coef_.T + model.intercept_
    centre = (ours - theirs).mean(1, keepdims=True)  # a constant for all classes changes no answer
    np.testing.assert_allclose(ours - centre, theirs, atol=1e-3)


def test_ridge_is_least_squares_with_equal_weight_for_classes() -> None:
    table = clusters([12, 30, 7], dim=6)
    rows, bias = solved(table, "ridge", 0.1)
    x, weight = table.rows.astype(np.float64), np.repeat(1 / (3 * np.array([12, 30, 7])), [12, 30, 7])
    centre = weight @ x
    covariance = (x - centre).T @ (weight[:, None] * (x - centre))
    targets = np.eye(3)[table.labels]
    cross = (x - centre).T @ (weight[:, None] * targets)
    wanted = np.linalg.solve(covariance + 0.1 * covariance.trace() / 6 * np.eye(6), cross).T
    np.testing.assert_allclose(rows, wanted, atol=1e-4)
    np.testing.assert_allclose(bias, 1 / 3 - wanted @ centre, atol=1e-4)


def test_the_choice_is_the_best_on_held_out_images_and_its_logits_are_calibrated() -> None:
    made = fit(clusters([40] * 8, dim=24, spread=3.0), CPU)
    assert made.rows.shape == (8, 24) and made.rows.dtype == torch.float32
    assert 30 < made.top1 < 100  # neither chance nor the images that it was fitted to
    # Other images of the same clusters: the factor is near the best there, too.
    fresh = closed_form._Fold.of(clusters([40] * 8, dim=24, spread=3.0), 1, CPU, iter)
    losses = fresh.losses(made.kind, made.strength)
    assert losses[closed_form._FACTORS.index(made.factor)] < losses.min() + 0.05


def test_few_images_and_equal_images_give_finite_rows() -> None:
    for table in (clusters([1, 1, 1], dim=8), clusters([2, 1, 5], dim=8), clusters([4, 4], dim=8, spread=0.0)):
        made = fit(table, CPU)
        assert made.rows.isfinite().all() and made.bias.isfinite().all()
        assert (table.rows @ made.rows.numpy().T + made.bias.numpy()).argmax(1).tolist() == table.labels.tolist()
