"""``pretrain.compile`` on many ranks: gradients are exchanged while the backward pass still runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from dist_train.config import PretrainConfig
from dist_train.distributed import context as contexts
from dist_train.distributed.context import Context
from dist_train.training.optimizer import make_optimizer, set_lr
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.strategies.strategy import Strategy

WIDTH = 1800  # a layer of 13 MB; DDP's buckets are 25 MB


def model() -> nn.Module:
    """Return a network of many DDP buckets, with a convolution and batch norm."""
    start = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(15), nn.Flatten()]
    wide = [layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*start, *wide, nn.Linear(WIDTH, 10))


def recording(events: list[str]) -> Any:
    """Note which graph runs, as a backend that does not change it."""

    def noting(name: str) -> Callable[..., Any]:
        def compiler(graph: Any, inputs: Any) -> Any:
            def run(*given: Any) -> Any:
                events.append(name)
                return graph(*given)

            return make_boxed_func(run)

        return compiler

    return aot_autograd(fw_compiler=noting("forward"), bw_compiler=noting("backward"))


def noted(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses names of types that are not evaluated
    state.append("exchange")
    return allreduce_hook(None, bucket)


def trained(me: Context, compiled: bool, events: list[str]) -> Strategy:
    """Make two steps of two passes each, as the loop does."""
    torch.manual_seed(0)
    config = PretrainConfig(global_batch=8, accumulate=2, compile=compiled, precision="fp32")
    net = model()
    precision = MixedPrecision(config.precision, me.device)
    strategy = make_strategy(net, make_optimizer(net, config), precision, config, me)
    strategy.module.train()

    strategy.module.register_comm_hook(events, noted)  # type: ignore[operator]
    draw = torch.Generator().manual_seed(me.rank)
    for _ in range(2):
        set_lr(strategy.optimizer, 0.1)
        for piece in range(2):
            events.append("pass")
            images, labels = torch.randn(2, 3, 20, 20, generator=draw), torch.randint(10, (2,), generator=draw)
            with strategy.accumulating(last=piece == 1):
                strategy.backward(F.cross_entropy(strategy.forward(images).float(), labels) / 2)
        strategy.step(0.0, norm=False)
    return strategy


def main(path: str, optimize_ddp: str) -> None:
    events: list[str] = []
    torch._dynamo.config.optimize_ddp = optimize_ddp == "True"
    with contexts.start() as me:
        plain = trained(me, False, [])
        torch.compile = partial(torch.compile, backend=recording(events))
        compiled = trained(me, True, events)
        pairs = zip(plain.model.parameters(), compiled.model.parameters(), strict=True)
        difference = max(float((a - b).abs().max().detach()) for a, b in pairs)
        if me.main:
            Path(path).write_text(json.dumps({"events": events, "difference": difference}))


def split(events: list[str]) -> list[list[str]]:
    """Return the events of each pass."""
    starts = [n for n, event in enumerate(events) if event == "pass"]
    return [events[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(events)], strict=True)]


def overlaps(events: list[str]) -> bool:
    """Return whether the first exchange comes before the last backward graph has run."""
    last = max(n for n, event in enumerate(events) if event == "backward")
    return events.index("exchange") < last


@pytest.mark.parametrize("optimize_ddp", [True, False], ids=["as it is", "without the split"])
def test_exchanges_begin_before_the_backward_pass_ends(
    optimize_ddp: bool, tmp_path: Path, torchrun: Callable[..., Any]
) -> None:
    """PyTorch cuts the graph at DDP's buckets. The second case shows that the test can fail."""
    torchrun(2, __file__, str(tmp_path / "events.json"), str(optimize_ddp))
    result = json.loads((tmp_path / "events.json").read_text())
    assert result["difference"] < 1e-5
    passes = split(result["events"])
    assert len(passes) == 4
    for number, events in enumerate(passes):
        graphs = events.count("backward")
        assert graphs > 1 if optimize_ddp else graphs == 1
        assert ("exchange" in events) is (number % 2 == 1)  # in the second of a step's two passes
    # From the second step on: DDP's buckets follow the order of the first backward pass.
    assert passes[3].count("exchange") > 1
    assert overlaps(passes[3]) is optimize_ddp


if __name__ == "__main__":
    main(*sys.argv[1:])
