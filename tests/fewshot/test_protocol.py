import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Fixed, activations, prepare

from dist_train.classifier.predicted import MODEL_METHODS
from dist_train.config import LearnConfig
from dist_train.errors import UserError
from dist_train.fewshot import methods
from dist_train.fewshot.method import Scorer
from dist_train.fewshot.methods.nearest_neighbour import NearestNeighbour
from dist_train.fewshot.protocols.joint import (
    JointScorer,
    Queries,
    harmonic_mean,
    seen_unseen,
    support_rows,
)
from dist_train.models.predictor import Predictor
from dist_train.training import checkpoint


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 10**6))
def test_joint_ranks_are_those_of_one_sort_over_all_classes(base: int, novel: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, 4, (20, base + novel)).astype(np.float32))  # many ties
    labels = [rng.integers(0, base, 10), rng.integers(0, novel, 10)]
    queries = [torch.arange(0, 10).float()[:, None], torch.arange(10, 20).float()[:, None]]
    added = torch.from_numpy(rng.permutation(novel))
    base_and_novel = [Queries(q, torch.from_numpy(y)) for q, y in zip(queries, labels, strict=True)]
    draw, draw_moved = (
        JointScorer(Fixed(scores[:, :base], scores[:, base:], moves), *base_and_novel).draw(
            torch.zeros(novel, 1, 1), added
        )
        for moves in (False, True)
    )
    assert draw.metrics == draw_moved.metrics and np.array_equal(draw.forgetting, draw_moved.forgetting)
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")  # ties: the lower class first
    truth = np.concatenate([labels[0], labels[1] + base])
    rank = (order == truth[:, None]).argmax(1)
    assert np.array_equal(draw.predicted, order[:, 0]) and np.array_equal(draw_moved.predicted, order[:, 0])
    for name, part in (("base", rank[:10]), ("novel", rank[10:])):
        assert draw.metrics[f"{name}_top1"] == pytest.approx(100 * (part < 1).mean())
        assert draw.metrics[f"{name}_top5"] == pytest.approx(100 * (part < 5).mean())
    # The curve, point by point: every offset that changes anything (scores are whole numbers).
    area = before = 0.0
    heights = np.zeros(101)
    for offset in np.arange(-4, 5.5, 0.5):
        moved_scores = scores.numpy() + offset * (np.arange(base + novel) >= base)
        first = np.argsort(-moved_scores, axis=1, kind="stable")[:, 0] == truth
        area += first[:10].mean() * (first[10:].mean() - before)
        reached = np.arange(101) <= 100 * first[10:].mean() + 1e-9
        heights[reached] = np.maximum(heights[reached], 100 * first[:10].mean())
        before = first[10:].mean()
    assert draw.metrics["ausuc"] == pytest.approx(100 * area) and np.allclose(draw.seen_unseen, heights)
    for count in range(novel + 1):
        scored = np.concatenate([np.arange(base), base + np.sort(added.numpy()[:count])])
        right = scored[np.argsort(-scores.numpy()[:10, scored], axis=1, kind="stable")[:, 0]] == labels[0]
        assert draw.forgetting[count] == pytest.approx(100 * right.mean())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("moves", [False, True])
def test_scores_that_are_not_finite_are_refused(moves: bool, bad: float) -> None:
    queries = [Queries(torch.arange(n, n + 3.0)[:, None], torch.tensor([0, 1, 1])) for n in (0, 3)]
    for place in ((0, 0), (5, 3)):  # the score of a base class, and of a novel class
        scores = torch.rand(6, 4)
        scores[place] = bad
        with pytest.raises(UserError, match="scores are not finite"):
            JointScorer(Fixed(scores[:, :2], scores[:, 2:], moves), *queries).draw(
                torch.zeros(2, 1, 1), torch.arange(2)
            )


def test_methods_cannot_tell_base_queries_from_novel_ones() -> None:
    batches: list[list[float]] = []

    class Recording(Fixed):
        def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
            batches.append(queries[:, 0].tolist())
            return super().base_scores(queries)

        def take(self, support: torch.Tensor) -> Scorer:
            scorer = super().take(support)

            def scores(queries: torch.Tensor) -> torch.Tensor:
                batches.append(queries[:, 0].tolist())
                return scorer(queries)

            return scores

    queries = [Queries(torch.arange(n, n + 50.0)[:, None], torch.zeros(50, dtype=torch.int64)) for n in (0, 50)]
    JointScorer(Recording(torch.rand(100, 2), torch.rand(100, 2)), *queries).draw(torch.zeros(2, 1, 1), torch.arange(2))
    assert len(batches) == 2 and batches[0] == batches[1] and sorted(batches[0]) == list(range(100))
    assert 10 < sum(number < 50 for number in batches[0][:50]) < 40


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
    prepared = prepare(base, means=means, rows=torch.rand(3, 5) - 0.5)
    queries, support = torch.rand(7, 5), torch.rand(2, 3, 5)
    rows = torch.from_numpy(base.rows.astype(np.float32))
    cosine = F.cosine_similarity(queries[:, None], rows[None], dim=2)
    by_class = torch.stack([cosine[:, a:b].amax(1) for a, b in ((0, 4), (4, 10), (10, 15))], dim=1)
    nearest = methods.make("nn", prepared)
    assert torch.allclose(nearest.base_scores(queries), by_class, atol=1e-5)
    single = F.cosine_similarity(queries[:, None, None], support[None], dim=3)
    assert torch.allclose(nearest.take(support)(queries), single.amax(2), atol=1e-5)
    to_mean = F.cosine_similarity(queries[:, None], support.mean(1)[None], dim=2)
    assert torch.allclose(methods.make("mean", prepared).take(support)(queries), to_mean, atol=1e-5)
    imprinted = methods.make("imprint", prepared)
    cosine = F.cosine_similarity(queries[:, None], prepared.rows[None], dim=2)
    assert torch.allclose(imprinted.base_scores(queries), cosine, atol=1e-5)
    unit = support / support.norm(dim=2, keepdim=True)
    to_mean = F.cosine_similarity(queries[:, None], unit.mean(1)[None], dim=2)
    assert torch.allclose(imprinted.take(support)(queries), to_mean, atol=1e-5)
    assert np.allclose(base.means()[1], base.rows[4:10].astype(np.float32).mean(0), atol=1e-6)


def test_harmonic_mean() -> None:
    assert harmonic_mean(30, 60) == pytest.approx(40) and harmonic_mean(0, 0) == 0


@pytest.mark.parametrize(("name", "kept"), [("nn10", [1, 2, 3]), ("nn1", [1, 1, 1])])
def test_each_base_class_keeps_its_share_of_images(name: str, kept: list[int]) -> None:
    base = activations([4, 20, 30])
    nearest = NearestNeighbour(name, prepare(base))
    rows = torch.from_numpy(base.rows.astype(np.float32))
    scores = nearest.base_scores(rows)
    assert torch.equal(scores, nearest.base_scores(rows))
    is_kept = scores[torch.arange(len(rows)), torch.from_numpy(base.labels)] > 1 - 1e-5  # its nearest image is itself
    assert [int(is_kept[a:b].sum()) for a, b in ((0, 4), (4, 24), (24, 54))] == kept


def test_ties_are_lost_at_the_offset_and_not_before() -> None:
    offset = torch.ones(1)
    assert seen_unseen(offset, offset, 1, 1)[0] == 0  # the novel query is won only where the base query is lost
    assert seen_unseen(offset + 1, offset, 1, 1)[0] == 100


def test_names_and_options_are_checked_and_documented() -> None:
    assert {"nn", "nn10", "nn1", "mean", "imprint", "phi1", "phi2", "phi2star"} <= set(methods.METHODS)
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    names = set(re.findall("`([^`]*)`", "".join(rows)))
    assert names == {*methods.METHODS, *methods.NUMBERS}
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    table = [cells for cells in table if len(cells) == 6]  # names, labels, source, both kinds of classes, cost
    found = {cells[0]: re.findall("`([^`]*)`", cells[0]) for cells in table}
    assert {name for of_row in found.values() for name in of_row} == methods.METHODS.keys()
    for name, label, *others in table:
        assert label == "; ".join(methods.LABELS[n] for n in found[name]) and all(others), name
    may_choose = re.findall(
        "`([a-z0-9_]+)`", text[text.index("It may choose") : text.index("and `--method` takes no others")]
    )
    assert set(may_choose) == set(MODEL_METHODS)
    with pytest.raises(UserError, match=r"evaluate.methods: 'mena' is not known; give some of .*mean"):
        methods.check_methods(["phi2"], ["nn", "mena"], {})
    with pytest.raises(UserError, match=r"evaluate.options: 'lambda' is not known"):
        methods.check_methods(["phi2"], ["nn"], {"lambda": 1.0})
    wrong = {"ridge_weight": 0.0, "calibration_cost": -1.0, "child_lr": float("nan"), "finetune_lr": float("inf"),
             "finetune_steps": 2.5}  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(UserError, match=rf"evaluate.options: {name}={value:g}: must be a (whole )?number above 0"):
            methods.check_methods(["phi2"], ["nn"], {name: value})
    with pytest.raises(UserError, match=r"nn_oracle, linear_oracle: oracles only stand beside a table"):
        methods.check_methods(["phi1"], ["nn_oracle", "linear_oracle"], {})
    with pytest.raises(UserError, match=r"learn.methods: 'mean' is not known; give some of .*phi2"):
        methods.check_methods(["mean"], ["nn"], {})
    with pytest.raises(UserError, match=r"evaluate.methods: 'phi2' needs 'phi2' in learn.methods \(phi1\)"):
        methods.check_methods(["phi1"], ["nn", "phi2"], {})


def test_methods_are_found_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    head = "from dist_train.fewshot.method import Method\n\nclass Common(Method):\n    pass\n\n"
    (tmp_path / "one_more.py").write_text(head + "class OneMore(Common):\n    labels = {'one_more': 'One more'}\n")
    assert methods._discover().keys() - methods.METHODS.keys() == {"one_more"}
    (tmp_path / "second_phi.py").write_text(head + "class Second(Common):\n    labels = {'phi2': 'not phi2 at all'}\n")
    with pytest.raises(UserError, match=r"second_phi.py: 'phi2' is a method of dist_train.fewshot.methods.predicted"):
        methods._discover()
    for name in ("one_more", "second_phi"):
        del sys.modules[f"{methods.__name__}.{name}"]


@pytest.mark.parametrize("rule", ["max", "mean", "rows"])
def test_rules_of_the_predictor_by_hand(rule: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = LearnConfig(identity_init=False)
    phi = Predictor("phi2", 5, options).requires_grad_(False)
    checkpoint.save(tmp_path / "phi2" / "final", {"model": phi.state_dict()}, {})
    means, support, queries = torch.rand(4, 5), torch.rand(3, 2, 5), torch.rand(6, 5)
    method = methods.make("phi2", prepare(None, means=means, learn=tmp_path, options=options, rule=rule))
    assert torch.allclose(method.base_scores(queries), queries @ phi(means).T)
    for q, row in enumerate(method.take(support)(queries)):
        for c, score in enumerate(row):
            a, b = support[c]
            responses = [float(phi(s) @ queries[q]) for s in (a, b, (a + b) / 2)]
            # The mean of the rows is of length 1, as base rows are.
            joined = sum(responses[:2]) / float((phi(a) + phi(b)).norm())
            wanted = {"max": max(responses[:2]), "mean": responses[2], "rows": joined}[rule]
            assert float(score) == pytest.approx(wanted, abs=1e-5)
