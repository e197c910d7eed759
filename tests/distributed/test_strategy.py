"""DDP and DeepSpeed train the same model: a step, fifty steps, and through a checkpoint, in each precision."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config import Config, PretrainConfig
from dist_train.distributed import context as contexts
from dist_train.distributed.context import Context
from dist_train.errors import STOPPED, UserError
from dist_train.models.backbones.ours import untrained
from dist_train.training import checkpoint, precision
from dist_train.training.metrics import read_metrics
from dist_train.training.optimizer import make_optimizer, set_lr
from dist_train.training.precision import MixedPrecision, assert_float32
from dist_train.training.strategies.deepspeed import deepspeed_options
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.strategies.strategy import Strategy

ZERO = ("zero0", "zero1", "zero2", "zero3")
CONFIG = PretrainConfig(model="resnet10", global_batch=16, accumulate=2, momentum=0.9, weight_decay=1e-2)


def small() -> nn.Module:
    """Return a network with all kinds of layers of a ResNet, but fast where fp16 is emulated."""
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 10))


def make(me: Context, name: str, kind: str = "fp32", **options: Any) -> Strategy:
    offload = name.endswith("+offload")
    config = replace(CONFIG, strategy=name.removesuffix("+offload"), offload=offload, **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = small() if kind != "fp32" else untrained(config.model, 10, small_stem=True)
    mixed = MixedPrecision(kind, me.device)  # type: ignore[arg-type]
    strategy = make_strategy(model, make_optimizer(model, config), mixed, config, me)
    strategy.module.train()
    return strategy


def steps(strategy: Strategy, me: Context, count: int, lr: float, clip: float = 0.0) -> tuple[list[float], Any]:
    """Make steps, and return this rank's losses and the last gradient's norm."""
    draw = torch.Generator().manual_seed(1 + me.rank)
    losses, norm = [], None
    for _ in range(count):
        set_lr(strategy.optimizer, lr)
        for piece in range(2):
            images = torch.randn(4, 3, 16, 16, generator=draw).to(memory_format=torch.channels_last)
            labels = torch.randint(10, (4,), generator=draw)
            with strategy.accumulating(last=piece == 1):
                loss = F.cross_entropy(strategy.forward(images).float(), labels)
                strategy.backward(loss / 2)
            losses.append(loss.item())
        norm = strategy.step(clip, norm=True)
    return losses, norm


def largest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of weights, batch norm statistics and momentum."""
    pairs = [(one["model"][key], other["model"][key]) for key in one["model"]]
    for index, state in one["optimizer"]["state"].items():
        pairs.append((state["momentum_buffer"], other["optimizer"]["state"][index]["momentum_buffer"]))
    assert one["optimizer"]["state"].keys() == other["optimizer"]["state"].keys()
    return max(float((a.float() - b.float()).abs().max()) for a, b in pairs)


def one_step(me: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plain = make(me, "ddp")
    _, norm = steps(plain, me, 1, 0.1)
    found["norm"] = float(norm)
    wanted = plain.tensors()
    for name in (*ZERO, "zero2+offload"):
        strategy = make(me, name)
        _, norm = steps(strategy, me, 1, 0.1)
        own = strategy.tensors()
        assert_float32(strategy.whole())
        found[name] = {"difference": largest(wanted, own), "norm": float(norm)}
        # Loaded into a fresh strategy of this kind, whose next step must then equal DDP's.
        again = make(me, name)
        again.load(wanted)
        found[name]["loaded"] = largest(wanted, again.tensors())
        steps(again, me, 1, 0.1)
        after = make(me, "ddp")
        after.load(wanted)
        steps(after, me, 1, 0.1)
        found[name]["next"] = largest(after.tensors(), again.tensors())
        batch = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(9))
        models = [again.whole().eval(), make(me, "ddp").whole().eval()]
        models[1].load_state_dict(again.tensors()["model"])
        with torch.inference_mode():
            found[name]["evaluation"] = float((models[0](batch) - models[1](batch)).abs().max())
        means = me.gather(dict(again.whole().named_buffers())["body.bn1.running_mean"].tolist())
        found[name]["buffers"] = means[0] == means[1]
    for name in ("ddp", *ZERO):
        strategy = make(me, name, clip_norm=0.5)
        steps(strategy, me, 1, 1.0, clip=0.5)
        moved = strategy.tensors()["model"]
        torch.manual_seed(0)
        start = untrained("resnet10", 10, True).state_dict()
        weights = [key for key, _ in strategy.model.named_parameters()]
        moves = torch.stack([(moved[key] - start[key]).norm() for key in weights])
        found.setdefault("clipped", {})[name] = float(moves.norm())
    return found


def mixed(me: Context) -> dict[str, Any]:
    """Make fifty steps in bf16, and in fp16, which this CPU may have to emulate, from a scale that overflows."""
    precision.cpu_has = lambda _: True
    found: dict[str, Any] = {}
    for name in ("ddp", *ZERO):
        strategy = make(me, name, "bf16")
        losses, _ = steps(strategy, me, 50, 0.02)
        found[name] = {"bf16": losses}
        strategy = make(me, name, "fp16")
        strategy.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        start = {key: value.clone() for key, value in strategy.tensors()["model"].items()}
        steps(strategy, me, 1, 0.02)
        weights = [key for key in start if key.endswith("weight")]
        same = all(torch.equal(start[key], strategy.tensors()["model"][key]) for key in weights)
        found[name] |= {"stayed": same, "skipped": strategy.precision.skipped.item()}
        found[name]["scale"] = strategy.precision.loss_scale
        strategy.precision.scaler.update(16.0)
        found[name]["fp16"], _ = steps(strategy, me, 4, 0.02)
        again = make(me, name, "fp16")
        again.load(strategy.tensors())
        found[name]["scale loaded"] = again.precision.loss_scale
        assert_float32(strategy.whole())
    return found


@pytest.fixture
def compared(tmp_path: Path, torchrun: Callable[..., Any]) -> Callable[[str], dict[str, Any]]:
    def run(what: str) -> dict[str, Any]:
        torchrun(2, __file__, what, str(tmp_path / "found.json"))
        found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
        return found

    return run


def test_a_step_equals_ddps_before_and_after_a_checkpoint(compared: Callable[[str], dict[str, Any]]) -> None:
    found = compared("one_step")
    assert found["norm"] > 1.5  # above DeepSpeed's own limit, which must not act
    for name in (*ZERO, "zero2+offload"):
        one = found[name]
        assert one["difference"] < 1e-5 and one["next"] < 1e-5, (name, one)
        assert one["loaded"] == 0 and one["evaluation"] < 1e-5 and one["buffers"], (name, one)
        assert one["norm"] == pytest.approx(found["norm"], rel=1e-5)
    assert found["clipped"] == pytest.approx(dict.fromkeys(found["clipped"], found["clipped"]["ddp"]), rel=1e-3)
    assert found["clipped"]["ddp"] < 2  # 16 where it is not clipped


def test_mixed_precision_is_the_same_on_both(compared: Callable[[str], dict[str, Any]]) -> None:
    found = compared("mixed")
    for name, one in found.items():
        away = [abs(a - b) for a, b in zip(one["bf16"], found["ddp"]["bf16"], strict=True)]
        assert max(away[:2]) < 1e-3 and sum(away) / len(away) < 0.15, (name, max(away), sum(away) / len(away))
        assert one["stayed"] and one["skipped"] == 1 and one["scale"] == 2.0**39, (name, one)
        assert one["scale loaded"] == 16
        assert one["fp16"] == pytest.approx(found["ddp"]["fp16"], abs=0.02)


def test_a_run_goes_from_ddp_to_zero_on_other_ranks_and_back(config: Config, ranks: Callable[..., Any]) -> None:
    config = replace(config, pretrain=replace(config.pretrain, epochs=6, checkpoint_every=5, log_every=5))
    assert ranks(2, replace(config, name="whole"), "pretrain").wait() == [0, 0]
    for world, strategy in ((2, "ddp"), (4, "zero2"), (1, "zero3"), (2, "ddp")):
        changed = replace(config, pretrain=replace(config.pretrain, strategy=strategy))  # type: ignore[arg-type]
        last = (world, strategy) == (2, "ddp") and (config.run_dir / "pretrain").exists()
        minutes = [] if last else ["--max-minutes", "0.0001"]
        one = ranks(world, changed, "pretrain", *minutes)
        assert set(one.wait()) == {0 if last else STOPPED}, one.error(0)
    whole, moved = (
        [row for row in read_metrics(config.runs / name / "pretrain" / "metrics.jsonl") if "train/loss" in row]
        for name in ("whole", "test")
    )
    assert [row["step"] for row in whole] == [row["step"] for row in moved]
    losses = [[row["train/loss"] for row in rows] for rows in (whole, moved)]
    assert losses[0] == pytest.approx(losses[1], rel=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clipping": 1.0}, "gradient_clipping.*pretrain.clip_norm"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage.*pretrain.strategy"),
        ({"bf16": {"enabled": True}}, "bf16.*pretrain.precision"),
        ({"zero_optimisation": {}}, "zero_optimisation.*did you mean zero_optimization"),
        ({"zero_optimization": {"reduce_bucket": 5}}, "reduce_bucket"),
        ({"zero_optimization": {"cpu_offload": True}}, "cpu_offload.*pretrain.offload"),
        ({"zero_optimization": True}, "zero_optimization: holds options of its own"),
        ({"loss_scale": 128}, "loss_scale: not an option that is passed on"),
    ],
)
def test_options_of_deepspeed_are_checked(options: dict[str, Any], message: str) -> None:
    config = replace(CONFIG, strategy="zero2", deepspeed=options)
    torch.manual_seed(0)
    model = untrained("resnet10", 10)
    with pytest.raises(UserError, match=message):
        make_strategy(
            model, make_optimizer(model, config), MixedPrecision("fp32", torch.device("cpu")), config, Context()
        )


def test_options_of_deepspeed_pass_through() -> None:
    options = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}
    made = deepspeed_options(replace(CONFIG, strategy="zero2", deepspeed=options, offload=True), 4)
    assert made["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000, "offload_optimizer": {"device": "cpu"}}
    sized = deepspeed_options(replace(CONFIG, strategy="zero1"), 4, parameters=25_557_032)
    assert sized["zero_optimization"]["reduce_bucket_size"] == 25_557_032, "and not 2 GB"
    given = deepspeed_options(replace(CONFIG, strategy="zero2", deepspeed=options), 4, parameters=25_557_032)
    assert given["zero_optimization"]["reduce_bucket_size"] == 1000
    assert made["wall_clock_breakdown"] and made["gradient_clipping"] == 0.0
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (2, 2)


def test_a_loss_that_is_not_finite_is_named_with_its_step_and_the_last_good_checkpoint(
    config: Config, ranks: Callable[..., Any]
) -> None:
    config = replace(config, pretrain=replace(config.pretrain, lr=1e12, checkpoint_every=1, log_every=7))
    one = ranks(2, config, "pretrain")
    assert 0 not in one.wait()
    newest = checkpoint.step_checkpoints(config.run_dir / "pretrain" / "checkpoints")[-1]
    step = int(newest.name.removeprefix("step-"))
    assert f"are not finite at step {step + 1}; the last good checkpoint is {newest}" in one.error(0) + one.error(1)
    assert all(value.isfinite().all() for value in checkpoint.load(newest).tensors["model"].values())


if __name__ == "__main__":  # a rank of the tests above
    with contexts.start() as me:
        result = {"one_step": one_step, "mixed": mixed}[sys.argv[1]](me)
        if me.main:
            Path(sys.argv[2]).write_text(json.dumps(result))
        # DeepSpeed's process groups outlive ours; their threads must be through before the interpreter ends.
        me.barrier("end")
        time.sleep(1)
