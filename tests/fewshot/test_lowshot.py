"""Low-shot ImageNet's measures, against whole softmaxes and one sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Fixed

from dist_train.data.activations import Activations
from dist_train.fewshot.protocols.joint import JointScorer, Queries
from dist_train.fewshot.protocols.low_shot import LowShotScorer
from dist_train.fewshot.results import Counts, Interval, MethodResult, Results, SplitFacts
from dist_train.report import paper
from dist_train.report.comparison import LOW_SHOT_MEASURES
from dist_train.report.markdown import low_shot_markdown


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 8), st.booleans(), st.sampled_from([1.0, 10.0]), st.integers(0, 10**6))
def test_measures_are_those_of_whole_softmaxes(base: int, novel: int, moves: bool, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3 / scale, (20, base + novel))
    given_novel = torch.from_numpy(scores[:, base:])
    labels = np.concatenate([rng.integers(0, base, 12), base + rng.integers(0, novel, 8)])
    queries = [
        Queries(torch.arange(0, 12).float()[:, None], torch.from_numpy(labels[:12])),
        Queries(torch.arange(12, 20).float()[:, None], torch.from_numpy(labels[12:] - base)),
    ]
    method = Fixed(torch.from_numpy(scores[:, :base]), given_novel, moves, scale)
    asked = torch.zeros(novel, 1, 1), torch.arange(novel)
    found = LowShotScorer(method, *queries).draw(*asked).metrics
    plain = JointScorer(method, *queries).draw(*asked).metrics
    assert {key: found[key] for key in plain} == plain
    # Base classes that the method knows and nobody scores make no difference, however high they score.
    kept = np.sort(rng.permutation(base + 3)[:base])
    more = np.full((20, base + 3), 99.0)
    more[:, kept] = scores[:, :base]
    wider = LowShotScorer(Fixed(torch.from_numpy(more), given_novel, moves, scale), *queries, kept=kept.tolist()).draw(
        *asked
    )
    assert wider.metrics == found and wider.predicted.max() < base + novel

    def right(values: np.ndarray, k: int) -> np.ndarray:
        return np.array([label in np.argsort(-row)[:k] for row, label in zip(values, labels, strict=True)])

    mass = np.exp(scale * scores)
    prior = np.concatenate([
        0.2 * mass[:, :base] / mass[:, :base].sum(1, keepdims=True),
        0.8 * mass[:, base:] / mass[:, base:].sum(1, keepdims=True),
    ], axis=1)  # fmt: skip
    alone = np.where(np.arange(base + novel) < base, -np.inf, scores)
    for k in (1, 5):
        wanted = {
            "novel": right(scores, k)[12:], "novel_only": right(alone, k)[12:], "base": right(scores, k)[:12],
            "all": right(scores, k), "all_prior": right(prior, k),
        }  # fmt: skip
        assert set(wanted) == set(LOW_SHOT_MEASURES)
        for name, hits in wanted.items():
            assert found[f"{name}_top{k}"] == pytest.approx(100 * hits.mean()), name


def test_selected_classes_of_a_table() -> None:
    rows = np.arange(20, dtype=np.float16).reshape(10, 2)
    table = Activations(rows, np.arange(100, 110), np.array([0, 3, 4, 8, 10]))
    some = table.select([1, 3])
    assert some.ids.tolist() == [103, 108, 109] and some.labels.tolist() == [0, 1, 1]
    assert np.array_equal(some.rows, rows[[3, 8, 9]]) and np.allclose(some.means(), table.means()[[1, 3]])
    assert table.select(range(4)) is table


def test_published_rows() -> None:
    rows = {row.method: row for row in paper.LOW_SHOT}
    assert len(rows) == 5 and rows["H&G, SGM + generation"].top5["novel, joint"][1] == 45.11
    for row in paper.LOW_SHOT:
        assert set(row.top5) <= {*LOW_SHOT_MEASURES.values(), "novel"} and "all" in row.top5
        for values in row.top5.values():
            assert list(values)[:4] == [1, 2, 5, 10] and list(values.values()) == sorted(values.values())


@pytest.mark.parametrize(("hash_", "holdout"), [(paper.LOW_SHOT_SPLIT, "novel"), ("other", "novel"),
                                                (paper.LOW_SHOT_SPLIT, "pseudo-novel")])  # fmt: skip
def test_section_of_the_table(hash_: str, holdout: str) -> None:
    metrics = {f"{key}_top{k}": Interval(10 * k + n, 0.5) for n, key in enumerate(LOW_SHOT_MEASURES) for k in (1, 5)}
    results = Results(
        methods={"phi2": MethodResult({1: metrics, 3: metrics})},
        shots=[1, 3],
        draws=2,
        interval="",
        classes=Counts(1, 1),
        split=SplitFacts("split", hash_, holdout),
        shards="",
        commit="",
        command="",
    )
    lines = [line for line in low_shot_markdown(results).splitlines() if line.startswith("|")]
    assert lines[0] == "| method | measure | n = 1 | n = 3 |" and {line.count("|") for line in lines} == {5}
    assert lines[3] == "| φ2 | novel-only | 11.00 ± 0.50 / 51.00 ± 0.50 | 11.00 ± 0.50 / 51.00 ± 0.50 |"
    published = [line for line in lines if "published" in line]
    assert bool(published) == (hash_ == paper.LOW_SHOT_SPLIT and holdout == "novel")
    if published:
        assert "| Gidaris & Komodakis (published, ResNet-10) | novel-only | – / 46.26 | – |" in published
