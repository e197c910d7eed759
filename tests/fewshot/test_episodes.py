"""Episodes, scored as by the authors' MiniImageNet code, and without its leak."""

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.config import EvaluateConfig, LearnConfig
from dist_train.data.activations import Activations
from dist_train.fewshot import methods
from dist_train.fewshot.method import Base, Method, Scorer
from dist_train.fewshot.protocols.episodes import accuracy, draw_episode, supports_and_queries
from dist_train.fewshot.results import Counts, EpisodeFacts, Interval, MethodResult, Results, SplitFacts
from dist_train.models.predictor import Predictor
from dist_train.report import paper
from dist_train.report.markdown import episodes_markdown
from dist_train.training import checkpoint


def table(counts: list[int], dim: int = 6, seed: int = 0) -> Activations:
    """Make classes that overlap, so that about half of the queries are right."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.random((len(counts), dim)), counts, axis=0)
    rows = (centres + rng.normal(0, 0.35, centres.shape)).clip(0).astype(np.float16)
    return Activations(rows, np.arange(len(rows)), np.concatenate([[0], np.cumsum(counts)]))


def release(tab: list[list[Any]], phi: Any, shots: int) -> float:
    """Return the accuracy of an episode as the text of the release computes it; slow, and independent of the package.

    Args:
        tab: ``tab[i]`` are the images of class i in drawn order; the release counts both from 1.
    """

    def at(i: int, j: int) -> Any:
        return tab[i - 1][j - 1]

    ways = len(tab)
    if shots == 1:
        start, ref = 2, [phi(at(i, 1)) for i in range(1, ways + 1)]
    else:
        start, ref = shots, []  # it says 5: the fifth image is the last support
        for i in range(1, ways + 1):
            total = at(i, 1)
            for j in range(2, shots + 1):
                total = total + at(i, j)
            ref.append(phi(total / shots))
    right = wrong = 0
    for i in range(1, ways + 1):
        for j in range(start, len(tab[i - 1]) + 1):
            best, best_k = -1e12, 0
            for k in range(1, ways + 1):
                similarity = sum(a * b for a, b in zip(ref[k - 1].tolist(), at(i, j).tolist(), strict=True))
                if similarity > best:
                    best, best_k = similarity, k
            right, wrong = (right + 1, wrong) if best_k == i else (right, wrong + 1)
    return right / (right + wrong)


def predicted(tmp_path: Any, dim: int) -> tuple[Method, Predictor]:
    torch.manual_seed(0)
    options = LearnConfig()
    phi = Predictor("phi2", dim, options).requires_grad_(False)
    for layer in phi.layers:
        layer.weight += 0.2 * torch.randn(dim, dim)  # type: ignore[operator]
    checkpoint.save(tmp_path / "phi2" / "final", {"model": phi.state_dict()}, {})
    base = Base(None, torch.rand(4, dim), None, None, tmp_path, options, "mean", methods.NUMBERS)  # type: ignore[arg-type]
    return methods.make("phi2", base), phi


def load(bank: Activations, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bank.rows[rows].astype(np.float32))


@pytest.mark.parametrize("shots", [1, 5])
def test_released_is_the_release(shots: int, tmp_path: Any) -> None:
    bank = table([12, 9, 15, 11, 10, 13, 14])
    method, phi = predicted(tmp_path, 6)
    accuracies, wanted = [], []
    for number in range(40):
        images = draw_episode(bank.offsets, 5, 3, number)
        support, queries = supports_and_queries(images, shots, 5, 15, released=True)
        labels = torch.from_numpy(np.repeat(np.arange(5), [len(rows) for rows in queries]))
        accuracies.append(accuracy(method, load(bank, support), load(bank, np.concatenate(queries)), labels))
        wanted.append(100 * release([list(load(bank, rows)) for rows in images], phi, shots))
        leaked = [set(s) & set(q.tolist()) for s, q in zip(support.tolist(), queries, strict=True)]
        assert leaked == ([set()] * 5 if shots == 1 else [{int(s[4])} for s in support])
        assert [len(rows) for rows in queries] == [len(rows) - (1 if shots == 1 else 4) for rows in images]
    assert accuracies == pytest.approx(wanted) and 30 < np.mean(accuracies) < 95 and len(set(accuracies)) > 20
    reported = Interval.spread(accuracies)
    assert reported.measure == "std" and reported.half_width == pytest.approx(statistics.stdev(accuracies))
    assert reported.mean == pytest.approx(np.mean(accuracies))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(9, 20), min_size=3, max_size=8), st.integers(0, 100), st.integers(0, 500))
def test_episodes_are_seeded_disjoint_and_the_same_for_all_shots(counts: list[int], seed: int, number: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(counts)])
    images = draw_episode(offsets, 3, seed, number)
    classes = [int(np.searchsorted(offsets, rows.min(), side="right")) - 1 for rows in images]
    assert len(set(classes)) == 3
    for c, rows in zip(classes, images, strict=True):
        assert sorted(rows) == list(range(offsets[c], offsets[c + 1]))
    again, other = draw_episode(offsets, 3, seed, number), draw_episode(offsets, 3, seed, number + 1)
    assert all(np.array_equal(a, b) for a, b in zip(images, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(images, other, strict=True))
    queries_by_shots = []
    for k in (1, 2, 5):
        support, queries = supports_and_queries(images, k, 5, 4, released=False)
        assert support.shape == (3, k) and all(len(rows) == 4 for rows in queries)
        assert not set(support.ravel()) & set(np.concatenate(queries))
        assert np.array_equal(support, np.stack([rows[:k] for rows in images]))
        queries_by_shots.append(np.concatenate(queries).tolist())
    assert queries_by_shots[0] == queries_by_shots[1] == queries_by_shots[2]


def test_classes_are_drawn_evenly() -> None:
    offsets = np.arange(0, 80, 10)
    drawn = np.array([[rows.min() // 10 for rows in draw_episode(offsets, 5, 0, n)] for n in range(700)])
    assert (np.abs(np.bincount(drawn.ravel(), minlength=7) - 500) < 60).all()
    assert (np.abs(np.bincount(drawn[:, 0], minlength=7) - 100) < 40).all()


class Moves(Method):
    """Score base classes higher than all classes of the episode, of which the nearest wins."""

    moves_base = True

    def __init__(self) -> None:
        pass

    def take(self, support: torch.Tensor) -> Scorer:
        return lambda queries: torch.cat([torch.full((len(queries), 3), 9.0), queries @ support.mean(1).T], 1)


def test_only_the_classes_of_the_episode_compete() -> None:
    support = torch.eye(4)[:, None]
    labels = torch.tensor([0, 1, 2, 3, 3])
    assert accuracy(Moves(), support, torch.eye(4)[labels], labels) == 100
    # A tie goes to the class drawn first.
    assert accuracy(Moves(), support, torch.ones(5, 4), labels) == 20


def test_released_wants_its_rule() -> None:
    with pytest.raises(ValueError, match=r"evaluate.rule=max: must be mean with evaluate.protocol=released"):
        EvaluateConfig(protocol="released")
    given = [EvaluateConfig(protocol="released", rule="mean", shots=[1, 5]), EvaluateConfig(protocol="episodes")]
    assert [options.images for options in (*given, EvaluateConfig())] == [6, 18, 3]


def test_table() -> None:
    mean = MethodResult({k: {"accuracy": Interval(50.126, 0.4)} for k in (1, 2, 5)})
    results = Results(
        protocol="episodes",
        methods={"mean": mean},
        shots=[1, 2, 5],
        draws=600,
        interval="95% t-interval over episodes",
        episodes=EpisodeFacts(ways=5, queries=15),
        classes=Counts(80, 20),
        split=SplitFacts("m", paper.MINI_SPLIT),
        shards="fedc",
        commit="abc",
        command="dist-train run",
    )
    text = episodes_markdown(results)
    assert "| Class mean + cosine | 50.13 ± 0.40 | 50.13 ± 0.40 | 50.13 ± 0.40 |" in text
    assert "| φ2, WRN (published) | 59.60 | – | 73.74 |" in text and "Queries of each class: 15, none of them" in text
    assert "published" not in episodes_markdown(replace(results, split=SplitFacts("m", "0")))
    spread = MethodResult({k: {"accuracy": Interval(50.126, 9.0, measure="std")} for k in (1, 2, 5)})
    released = replace(
        results, protocol="released", interval="standard deviation over episodes", methods={"mean": spread}
    )
    assert "50.13 ± 9.00" in episodes_markdown(released) and "one support image of each" in episodes_markdown(released)
