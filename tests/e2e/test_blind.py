"""No method can see query labels, or novel activations other than its supports."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from tqdm import tqdm

from dist_train.config import Config
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot.method import Base, Method
from dist_train.fewshot.methods import FROZEN, LEARNED, METHODS, NUMBERS, make
from dist_train.runs.run import Run, open_run
from dist_train.stages import scoring
from dist_train.stages.learn import learn

Given = list[tuple[torch.Tensor, ...]]


@pytest.fixture(scope="module")
def trained(small_run: Config, whole_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Make a run with every predictor, up to its evaluation."""
    config = replace(small_run, runs=tmp_path_factory.mktemp("blind"))
    few = {"ranpac_features": 64.0, **{name: 5.0 for name in NUMBERS if name.endswith("_steps")}}
    given = replace(
        config,
        learn=replace(config.learn, methods=list(LEARNED), steps=10, checkpoint_every=10, log_every=10),
        evaluate=replace(config.evaluate, methods=FROZEN, options=few, draws=2, shots=[1, 2]),
    )
    for stage in ("pretrain", "extract"):
        shutil.copytree(whole_run.dir / stage, given.run_dir / stage)
    run = open_run(given)
    learn(run, Context(), StopFlag(Context()))
    return run


def _spied(method: Method, seen: Given, scores: list[torch.Tensor]) -> Method:
    """Return the method, made to record everything that it is given and everything that it answers."""

    def noting(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*given: torch.Tensor) -> torch.Tensor:
            seen.append(given)
            scores.append(function(*given))
            return scores[-1]

        return call

    take, take_first = method.take, method.take_first

    def taking(*given: torch.Tensor) -> Callable[..., torch.Tensor]:
        seen.append(given)
        return noting(take(*given))

    def taking_first(support: torch.Tensor, shots: Sequence[int]) -> Iterator[Callable[..., torch.Tensor]]:
        seen.append((support,))
        return map(noting, take_first(support, shots))

    method.take_first = taking_first  # type: ignore[method-assign]
    method.base_scores = noting(method.base_scores)  # type: ignore[method-assign]
    method.take = taking  # type: ignore[method-assign, assignment]
    return method


@pytest.mark.parametrize("name", FROZEN)
def test_methods_are_blind(name: str, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Given = []
    scores: list[torch.Tensor] = []
    whole = scoring.JointScoring(trained, Context())

    def making(name: str, base: Base) -> Method:
        return _spied(make(name, base), seen, scores)

    monkeypatch.setattr(scoring, "make", making)

    def scores_after(change: Callable[[scoring.JointScoring], None]) -> list[torch.Tensor]:
        joint = scoring.JointScoring(trained, Context())
        change(joint)
        seen.clear()
        scores.clear()
        with torch.inference_mode(), tqdm(disable=True) as bar:
            joint.score(name, StopFlag(Context()), bar)
        for given in seen:
            for tensor in (part for one in given for part in (one if isinstance(one, list) else [one])):
                assert tensor.dtype == torch.float32 and tensor.shape[-1] == joint.base_queries.activations.shape[1]
        return list(scores)

    def no_change(joint: scoring.JointScoring) -> None:
        base = joint.base
        ids = {int(i) for i in base.train.ids}
        assert not ids & {int(i) for i in joint.novel_train.ids} and len(base.means) == len(base.rows) == len(
            trained.base
        )

    def other_labels(joint: scoring.JointScoring) -> None:
        for queries in (joint.base_queries, joint.novel_queries):
            queries.labels[:] = queries.labels.flip(0)

    def poison(joint: scoring.JointScoring) -> None:
        """Replace all novel training images except the supports by NaN."""
        kept = np.unique(np.stack(list(joint.supports.values())))
        rows = np.array(joint.novel_train.rows)
        rows[np.setdiff1d(np.arange(len(rows)), kept)] = np.nan
        joint.novel_train = replace(joint.novel_train, rows=rows)

    altered = slice(None, None, 2)

    def other_queries(joint: scoring.JointScoring) -> None:
        """Replace every second query; the scores of the others must be the same."""
        mixed = joint._make_scorer.keywords["mixed"].activations
        mixed[altered] = mixed[altered].flip(0) + 3

    plain = scores_after(no_change)
    assert plain
    queries = len(whole.base_queries.labels) + len(whole.novel_queries.labels)
    others = scores_after(other_queries)
    assert len(others) == len(plain)
    for before, after in zip(plain, others, strict=True):
        of_queries = len(before) == queries
        assert torch.equal(before[1::2], after[1::2]) if of_queries else torch.equal(before, after), "other queries"
    changes = [other_labels] if METHODS[name].oracle else [other_labels, poison]
    for change in changes:
        found = scores_after(change)
        assert len(found) == len(plain)
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True)), change.__name__
