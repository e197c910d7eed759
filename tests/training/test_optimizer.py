"""Optimisers, their groups and their learning rates."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from dist_train.config import LearnConfig, PretrainConfig
from dist_train.training.optimizer import (
    learning_rate,
    make_optimizer,
    peak_lr,
    predictor_rate,
    set_lr,
    sgd,
)


def test_schedule_is_a_pure_function_with_known_values() -> None:
    config = PretrainConfig(lr=2.0, epochs=100)
    rates = [learning_rate(s, 100, 10, 100, config) for s in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0) and rates[-1] < 0.01
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(0, 10, 0, 1, replace(config, lr=1.0)) == 1.0
    line = replace(config, schedule="linear")
    assert [learning_rate(s, 100, 10, 100, line) for s in (10, 55, 100)] == pytest.approx([2.0, 1.0, 0.0])
    tenths = replace(config, schedule="step", epochs=90)
    found = [learning_rate(s, 900, 50, 90, tenths) for s in (50, 299, 300, 599, 600, 800)]
    assert found == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.002])
    scaled = [peak_lr(replace(config, global_batch=4096, lr_scaling=rule)) for rule in ("none", "linear", "sqrt")]
    assert scaled == [2.0, 32.0, 8.0]
    rates = {kind: [predictor_rate(s, 200, LearnConfig(schedule=kind)) for s in (0, 49, 50, 120, 175)]
             for kind in ("constant", "release", "cosine")}  # fmt: skip
    assert rates["release"] == pytest.approx([1e-3, 1e-3, 5e-4, 1e-4, 1e-5]) and set(rates["constant"]) == {1e-3}
    assert rates["cosine"][0] == 1e-3 and predictor_rate(100, 200, LearnConfig(schedule="cosine")) == pytest.approx(
        5e-4
    )


def test_a_rate_in_a_tensor_is_set_in_place() -> None:
    found = []
    for rate in (0.0, torch.zeros(())):
        weight = nn.Parameter(torch.arange(3.0))
        optimizer = sgd([{"params": [weight]}], 0.9)
        optimizer.param_groups[0]["lr"] = rate
        for step in range(3):
            weight.grad = weight.detach() + 1
            set_lr(optimizer, 0.1 / (step + 1))
            optimizer.step()
        assert not torch.is_tensor(rate) or optimizer.param_groups[0]["lr"] is rate
        found.append(weight.detach())
    assert torch.allclose(*found, rtol=1e-6)


def test_no_weight_decay_on_norms_and_biases() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = make_optimizer(model, PretrainConfig(weight_decay=0.1))
    decayed, free = (group["params"] for group in optimizer.param_groups)
    assert [p.ndim for p in decayed] == [4, 2] and all(p.ndim == 1 for p in free) and len(free) == 4
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
