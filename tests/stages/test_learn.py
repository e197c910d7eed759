"""The predictor's training on real activations files, alone and on ranks."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dist_train import context as contexts
from dist_train.config import LearnConfig
from dist_train.context import Context
from dist_train.data.activations import Activations
from dist_train.engine import checkpoint
from dist_train.engine.metrics import read
from dist_train.engine.preempt import Stopper
from dist_train.errors import UserError
from dist_train.models.predictor import Predictor
from dist_train.stages.learn import Bank, train

CONFIG = LearnConfig(steps=30, lr=0.05, log_every=10, checkpoint_every=10, precision="fp32")


def bank(context: Context) -> Bank:
    rng = np.random.default_rng(0)
    centres = rng.random((7, 12)) * 3
    rows = (np.repeat(centres, 20, 0) + 0.3 * rng.random((140, 12))).astype(np.float16)
    table = Activations(rows, np.arange(140), np.arange(0, 141, 20))
    val = Activations(rows[::4], np.arange(35), np.arange(0, 36, 5))
    return Bank(table, val, table.means(), torch.zeros(7, 12), context)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(folder / "final").tensors["model"]
    return found


def test_one_step_is_the_papers_formula(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=1, momentum=0.0, weight_decay=0.0, p_mean=0.5)
    data = bank(Context())
    train("phi2", data, config, tmp_path, 3, Context(), {}, Stopper(Context()))
    single, support, query = (d[0] for d in data.draw(3, 0, 0.5))
    assert 0 < len(single) < 7
    phi = Predictor("phi2", 12, config)
    statistics = torch.stack(
        [data.train[support[y]].float() if y in single.tolist() else data.means[y] for y in range(7)]
    )
    loss = F.cross_entropy(data.train[query].float() @ phi(statistics).T, torch.arange(7))
    loss.backward()
    after = weights(tmp_path)
    for name, parameter in phi.named_parameters():
        assert torch.allclose(after[name], parameter - 0.05 * parameter.grad, atol=1e-6), name
    assert read(tmp_path / "metrics.jsonl")[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_draws_stay_within_their_class_and_follow_p_mean() -> None:
    data = bank(Context())
    singles, support, query = data.draw(0, 64, 0.9)
    labels = torch.arange(7).expand(64, 7)
    for rows in (support, query):
        assert torch.equal(rows // 20, labels)
    assert len(singles) == 64 and 0.03 < sum(map(len, singles)) / (64 * 7) < 0.2
    assert not any(map(len, data.draw(0, 0, 1.0)[0]))  # phi2*


def test_loss_falls_and_a_resume_is_bit_equal(tmp_path: Path) -> None:
    train("phi2", bank(Context()), CONFIG, tmp_path / "whole", 0, Context(), {}, Stopper(Context()))
    rows = read(tmp_path / "whole" / "metrics.jsonl")
    assert [r["step"] for r in rows] == [10, 20, 30] and rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert {"eval/base_top1(%)", "time/throughput(it/s)", "optim/lr"} <= set(rows[0])

    part = tmp_path / "part"
    train("phi2", bank(Context()), replace(CONFIG, steps=21), part, 0, Context(), {}, Stopper(Context()))
    (part / "final" / "manifest.json").unlink()  # as if it was killed after the checkpoint of step 20
    train("phi2", bank(Context()), CONFIG, part, 0, Context(), {}, Stopper(Context()))
    assert [r["step"] for r in read(part / "metrics.jsonl")] == [10, 20, 30]
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(part)[name]), name


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path: Path) -> None:
    data = bank(Context())
    data.train[data.draw(0, 0, 0.0)[2][12, 3]] = float("nan")  # the query of class 3 in step 13
    config = replace(CONFIG, p_mean=0.0, checkpoint_every=5)
    with pytest.raises(UserError, match=r"phi2: loss or weights are not finite at step (\d+); .*step-0000\d+") as told:
        train("phi2", data, config, tmp_path, 0, Context(), {}, Stopper(Context()))
    step = int(str(told.value).split("at step ")[1].split(";")[0])
    rows = [data.draw(0, 0, 0.0)[k] for k in (1, 2)]
    bad = [n for n in range(30) if any(data.train[r[n]].isnan().any() for r in rows)]
    assert step == bad[0] + 1 and checkpoint.steps(tmp_path / "checkpoints")[-1].name == f"step-{bad[0] // 5 * 5:08d}"


def test_any_number_of_ranks_learns_the_same(tmp_path: Path, torchrun) -> None:  # type: ignore[no-untyped-def]
    train("phi2", bank(Context()), CONFIG, tmp_path / "one", 0, Context(), {}, Stopper(Context()))
    torchrun(3, __file__, str(tmp_path / "three"))
    for name, value in weights(tmp_path / "one").items():
        assert torch.allclose(value, weights(tmp_path / "three")[name], atol=1e-5), name
    losses = [[r["train/loss"] for r in read(tmp_path / n / "metrics.jsonl")] for n in ("one", "three")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert json.loads((tmp_path / "three" / "final" / "state.json").read_text())["method"] == "phi2"


if __name__ == "__main__":  # a rank of the test above
    with contexts.start() as me:
        train("phi2", bank(me), CONFIG, Path(sys.argv[1]), 0, me, {}, Stopper(me))
