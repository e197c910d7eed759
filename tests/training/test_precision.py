"""Mixed precision, and the seeds of a step."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dist_train.errors import UserError
from dist_train.training import precision
from dist_train.training.objective import seed_step
from dist_train.training.optimizer import (
    decay_groups,
    sgd,
)
from dist_train.training.precision import MixedPrecision


def test_a_step_is_seeded_as_by_torch() -> None:
    draws = []
    for numbers in ((0, 1, 2, 3), (0, 1, 2, 4)):
        seed_step(*numbers, torch.device("cpu"))
        draws.append(torch.rand(4))
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1)
        assert torch.equal(draws[-1], torch.rand(4))
    assert not torch.equal(*draws)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_precision_computes_in_its_type_over_float32_weights(kind: str) -> None:
    mixed = MixedPrecision(kind, torch.device("cpu"))  # type: ignore[arg-type]
    model = nn.Linear(4, 2)
    optimizer = sgd(decay_groups(model, 0.0), 0.0)
    optimizer.param_groups[0]["lr"] = 1.0
    before = model.weight.detach().clone()
    with mixed.autocast():
        out = model(torch.ones(1, 4))
    assert out.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
    mixed.scale(out.float().sum()).backward()
    mixed.step(optimizer)
    assert model.weight.dtype == torch.float32 and not torch.equal(model.weight, before)
    assert math.isfinite(mixed.loss_scale)


def test_fp16_is_refused_where_the_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has", lambda kind: kind != "fp16")
    with pytest.raises(UserError, match="this CPU has no fp16 instructions; use bf16 or fp32"):
        MixedPrecision("fp16", torch.device("cpu"))


def test_a_skipped_first_step_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has", lambda _: True)
    mixed = MixedPrecision("fp16", torch.device("cpu"))
    mixed.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    weights = [nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    for weight, first in zip(weights, (math.inf, None), strict=True):
        optimizer = sgd([{"params": [weight], "weight_decay": 0.1}], 0.9)
        optimizer.param_groups[0]["lr"] = 0.1
        for value in (first, 1.0, 2.0):
            if value is not None:
                mixed.scale(value * weight.sum()).backward()
                mixed.unscale(optimizer)
                mixed.step(optimizer)
                optimizer.zero_grad()
    assert torch.equal(*weights) and mixed.skipped == 1
