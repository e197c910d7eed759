import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.activations import Activations
from dist_train.errors import UserError
from dist_train.fewshot.methods import Prepared
from dist_train.fewshot.methods.class_mean import ClassMean
from dist_train.fewshot.methods.nearest_neighbour import NearestNeighbour
from dist_train.fewshot.protocol import JointScorer, Queries, harmonic_mean, summary, support_rows


def activations(counts: list[int], dim: int = 5, seed: int = 0) -> Activations:
    rows = np.random.default_rng(seed).random((sum(counts), dim)).astype(np.float16)
    return Activations(rows, np.arange(len(rows)), np.concatenate([[0], np.cumsum(counts)]))


class Fixed:
    """A method whose scores are given."""

    def __init__(self, base: torch.Tensor, novel: torch.Tensor) -> None:
        self.base, self.novel = base, novel

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.base[queries[:, 0].long()]

    def novel_scores(self, queries: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        return self.novel[queries[:, 0].long()]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 10**6))
def test_joint_ranks_are_those_of_one_sort_over_all_classes(base: int, novel: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, 4, (20, base + novel)).astype(np.float32))  # many ties
    labels = [rng.integers(0, base, 10), rng.integers(0, novel, 10)]
    queries = [torch.arange(0, 10).float()[:, None], torch.arange(10, 20).float()[:, None]]
    method = Fixed(scores[:, :base], scores[:, base:])
    found = JointScorer(method, *(Queries(q, torch.from_numpy(y)) for q, y in zip(queries, labels, strict=True))).draw(
        torch.zeros(novel, 1, 1)
    )
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")  # ties: the lower class first
    truth = np.concatenate([labels[0], labels[1] + base])
    rank = (order == truth[:, None]).argmax(1)
    for name, part in (("base", rank[:10]), ("novel", rank[10:])):
        assert found[f"{name}_top1"] == pytest.approx(100 * (part < 1).mean())
        assert found[f"{name}_top5"] == pytest.approx(100 * (part < 5).mean())


def test_supports_are_seeded_nested_and_without_repeats() -> None:
    table = activations([9, 12, 10])
    rows = support_rows(table, 3, seed=0, draw=4)
    assert np.array_equal(rows, support_rows(table, 3, 0, 4)) and np.array_equal(
        rows[:, :2], support_rows(table, 2, 0, 4)
    )
    assert not np.array_equal(rows, support_rows(table, 3, 0, 5)) and not np.array_equal(
        rows, support_rows(table, 3, 1, 4)
    )
    for number, row in enumerate(rows):
        assert len(set(row)) == 3 and (row >= table.offsets[number]).all() and (row < table.offsets[number + 1]).all()
    with pytest.raises(UserError, match=r"10 shots.*only 9"):
        support_rows(table, 10, 0, 0)


def test_baselines_by_hand() -> None:
    base = activations([4, 6, 5])
    means = torch.from_numpy(base.means())
    prepared = Prepared(base, means, None, None)  # type: ignore[arg-type]
    queries, support = torch.rand(7, 5), torch.rand(2, 3, 5)
    rows = torch.from_numpy(base.rows.astype(np.float32))
    cosine = F.cosine_similarity(queries[:, None], rows[None], dim=2)
    by_class = torch.stack([cosine[:, a:b].amax(1) for a, b in ((0, 4), (4, 10), (10, 15))], dim=1)
    assert torch.allclose(NearestNeighbour(prepared).base_scores(queries), by_class, atol=1e-5)
    single = F.cosine_similarity(queries[:, None, None], support[None], dim=3)
    assert torch.allclose(NearestNeighbour(prepared).novel_scores(queries, support), single.amax(2), atol=1e-5)
    to_mean = F.cosine_similarity(queries[:, None], support.mean(1)[None], dim=2)
    assert torch.allclose(ClassMean(prepared).novel_scores(queries, support), to_mean, atol=1e-5)
    assert np.allclose(base.means()[1], base.rows[4:10].astype(np.float32).mean(0), atol=1e-6)


def test_interval_is_students() -> None:
    from scipy import stats

    draws = [1.0, 2.0, 4.0, 3.0]
    found = summary(draws)
    low, high = stats.t.interval(0.95, 3, loc=2.5, scale=stats.sem(draws))
    assert found["mean"] == 2.5 and found["ci95"] == pytest.approx((high - low) / 2) and found["draws"] == draws
    assert harmonic_mean(30, 60) == pytest.approx(40) and harmonic_mean(0, 0) == 0
