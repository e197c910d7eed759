"""DeepSpeed's ZeRO in a lone process trains the same as DDP: two steps, a checkpoint, two more steps.

In a process of their own, for DeepSpeed keeps what it was set up with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dist_train.config import PretrainConfig
from dist_train.distributed import context as contexts
from dist_train.distributed.context import Context
from dist_train.models.backbones.ours import untrained
from dist_train.training.optimizer import make_optimizer, set_lr
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.strategies.strategy import Strategy

CONFIG = PretrainConfig(model="resnet10", global_batch=8, precision="fp32", weight_decay=1e-2)
NAMES = ("zero1", "zero3", "zero2+offload")
TOLERANCE = 1e-4  # of weights and momenta of size 1 and below: a GPU adds in another order


def make(me: Context, name: str) -> Strategy:
    """Return the strategy ``name``, such as zero2+offload, of a network with seeded weights."""
    config = replace(CONFIG, strategy=name.removesuffix("+offload"), offload=name.endswith("+offload"))  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = untrained(config.model, 10, small_stem=True).to(me.device)
    strategy = make_strategy(model, make_optimizer(model, config), MixedPrecision("fp32", me.device), config, me)
    strategy.module.train()
    return strategy


def steps(strategy: Strategy, me: Context, numbers: range) -> list[float]:
    """Train on the batches of these numbers; return losses and gradient norms in turn."""
    found = []
    for number in numbers:
        draw = torch.Generator().manual_seed(number)
        images = torch.randn(8, 3, 32, 32, generator=draw).to(me.device, memory_format=torch.channels_last)
        labels = torch.randint(10, (8,), generator=draw).to(me.device)
        set_lr(strategy.optimizer, 0.02)
        with strategy.accumulating(last=True):
            loss = F.cross_entropy(strategy.forward(images).float(), labels)
            strategy.backward(loss)
        norm = strategy.step(0.0, norm=True)
        assert norm is not None
        found += [loss.item(), float(norm)]
    return found


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of weights, statistics and momenta."""
    assert one["optimizer"]["state"].keys() == other["optimizer"]["state"].keys()
    pairs = [(value, other["model"][key]) for key, value in one["model"].items()]
    pairs += [(state["momentum_buffer"], other["optimizer"]["state"][number]["momentum_buffer"])
              for number, state in one["optimizer"]["state"].items()]  # fmt: skip
    return max(float((a.float().cpu() - b.float().cpu()).abs().max()) for a, b in pairs)


def compare(me: Context, name: str) -> dict[str, Any]:
    """Compare ``name`` with DDP after two steps, and after two more by strategies that have loaded the other's
    tensors."""
    plain, strategy = make(me, "ddp"), make(me, name)
    found: dict[str, Any] = {"device": str(me.device)}
    found["ddp"], found["own"] = steps(plain, me, range(2)), steps(strategy, me, range(2))
    mine, theirs = strategy.tensors(), plain.tensors()
    found["apart"] = apart(theirs, mine)
    again, back = make(me, name), make(me, "ddp")
    again.load(theirs)
    back.load(mine)
    found["loaded"] = apart(theirs, again.tensors())
    steps(again, me, range(2, 4))
    steps(back, me, range(2, 4))
    found["later"] = apart(back.tensors(), again.tensors())
    return found


def test_zero_in_a_lone_process_equals_ddp(device: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # a lone process takes the first GPU of those that it is shown
    if device.type == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    report = tmp_path / "found.json"
    done = subprocess.run([sys.executable, __file__, str(report)], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name, found in json.loads(report.read_text()).items():
        assert found["device"].startswith(device.type), (name, found)
        assert found["own"] == pytest.approx(found["ddp"], rel=1e-3), (name, found)
        assert found["loaded"] == 0 and found["apart"] < TOLERANCE and found["later"] < TOLERANCE, (name, found)


if __name__ == "__main__":  # the process of the test above
    with contexts.start() as alone:
        Path(sys.argv[1]).write_text(json.dumps({name: compare(alone, name) for name in NAMES}))
    os._exit(0)  # DeepSpeed's threads may outlive its process group
