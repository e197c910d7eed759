import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dist_train.config import LearnConfig, PretrainConfig
from dist_train.errors import UserError
from dist_train.training import checkpoint, metrics, precision
from dist_train.training.objective import seed_step
from dist_train.training.optimizer import (
    decay_groups,
    learning_rate,
    make_optimizer,
    peak_lr,
    predictor_rate,
    set_lr,
    sgd,
)
from dist_train.training.precision import MixedPrecision


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


def test_a_rate_in_a_tensor_is_the_rate_and_set_in_place() -> None:
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


def test_a_step_is_seeded_as_by_torch() -> None:
    draws = []
    for numbers in ((0, 1, 2, 3), (0, 1, 2, 4)):
        seed_step(*numbers, torch.device("cpu"))
        draws.append(torch.rand(4))
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1)
        assert torch.equal(draws[-1], torch.rand(4))
    assert not torch.equal(*draws)


def save(folder: Path, step: int) -> None:
    checkpoint.save(checkpoint.step_path(folder, step), {"w": torch.full((3,), float(step))}, {"step": step})


def test_checkpoint_round_trip_and_retention(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) is None
    for step in (1, 2, 10):
        save(tmp_path, step)
    latest = checkpoint.load_latest(tmp_path)
    assert latest and latest.state == {"step": 10} and latest.tensors["w"].tolist() == [10.0] * 3
    checkpoint.retain(tmp_path, 2)
    assert [p.name for p in checkpoint.step_checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    save(tmp_path, 10)  # the same name again
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    file = tmp_path / "step-00000002" / ("manifest.json" if damage == "manifest" else "tensors.pt")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-5])
    else:
        file.unlink()
    latest = checkpoint.load_latest(tmp_path)
    assert latest and latest.state["step"] == 1
    assert "step-00000002" in caplog.text and "falling back" in caplog.text
    with pytest.raises(UserError, match="step-00000002"):
        checkpoint.load(tmp_path / "step-00000002")
    (tmp_path / "step-00000001" / "tensors.pt").unlink()
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        checkpoint.load_latest(tmp_path)


def test_metrics_take_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    first = metrics.MetricsWriter(tmp_path, 0)
    for step in (2, 4, 6):
        first.write(step, {"train/loss": 1.0 / step})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train')  # killed while writing
    again = metrics.MetricsWriter(tmp_path, 4)
    again.write(6, {"train/loss": 0.5})
    again.close()
    rows = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6] and rows[-1]["train/loss"] == 0.5
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


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


def test_a_first_step_that_is_left_out_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
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
