"""Two ranks train the same as a lone process on the same global batch, and exchange gradients during the backward pass.

On GPUs over NCCL, on the CPU over gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from dist_train.config import PretrainConfig
from dist_train.distributed import context as contexts
from dist_train.distributed.context import Context
from dist_train.models.backbones.ours import untrained
from dist_train.training.optimizer import make_optimizer, set_lr
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.strategies.strategy import Strategy

TWO_GPUS = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")]
)
STEPS, BATCH = 3, 16


def make(me: Context, name: str, norms: str) -> Strategy:
    """Return DDP around a network whose batch norm is fixed (no statistics of a batch), synchronised, or unchanged."""
    config = PretrainConfig(model=name, global_batch=BATCH, precision="fp32")
    torch.manual_seed(0)
    model: nn.Module = untrained(config.model, 10, small_stem=True)
    if norms == "synchronised":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(me.device)
    strategy = make_strategy(model, make_optimizer(model, config), MixedPrecision("fp32", me.device), config, me)
    strategy.module.train()
    for layer in model.modules():
        if norms == "fixed" and isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return strategy


def step(strategy: Strategy, me: Context, number: int, side: int) -> None:
    """Train on this rank's share of global batch ``number``."""
    draw = torch.Generator().manual_seed(number)
    images, labels = torch.randn(BATCH, 3, side, side, generator=draw), torch.randint(10, (BATCH,), generator=draw)
    mine = slice(me.rank, None, me.world)
    set_lr(strategy.optimizer, 0.02)
    loss = F.cross_entropy(strategy.forward(images[mine].to(me.device)), labels[mine].to(me.device))
    strategy.backward(loss)
    strategy.step(0.0, norm=False)


def parity(me: Context, norms: str, report: Path) -> None:
    strategy = make(me, "resnet10", norms)
    for number in range(STEPS):
        step(strategy, me, number, 32)
    tensors = strategy.tensors()["model"]  # all ranks call it
    if me.main:
        torch.save({name: value.cpu() for name, value in tensors.items()}, report)


def overlap(me: Context, norms: str, report: Path) -> None:
    """Count exchanges and computing kernels in the profile of a step, and pairs of both at the same time."""
    gpu = me.device.type == "cuda"
    strategy = make(me, "resnet50" if gpu else "resnet10", norms)
    for number in range(3):  # DDP orders its buckets in the first step
        step(strategy, me, number, 64 if gpu else 32)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        step(strategy, me, 3, 64 if gpu else 32)
        if gpu:
            torch.cuda.synchronize()
    exchanges, computing = [], []
    for event in seen.events() or ():
        if gpu and event.device_type != DeviceType.CUDA:
            continue
        name, spent = event.name.lower(), (event.time_range.start, event.time_range.end)
        if "allreduce" in name if gpu else name == "gloo:all_reduce":
            exchanges.append(spent)
        elif computes(name) if gpu else name == "convolutionbackward0":
            computing.append(spent)
    both = sum(a < d and c < b for a, b in exchanges for c, d in computing)
    if me.main:
        report.write_text(json.dumps({"exchanges": len(exchanges), "computing": len(computing), "both": both}))


def computes(name: str) -> bool:
    """Return whether a GPU's event is a kernel that computes: no exchange, no copy, and no label of the program."""
    return not any(part in name for part in ("nccl", "memcpy", "memset", "distributed", "optimizer"))


def launch(world: int, device: str, *words: str) -> None:
    """Run this file on ``world`` ranks, on GPUs or on the CPU."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = subprocess.run([*launcher, __file__, *words], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def compare(device: str, norms: str, folder: Path) -> None:
    found: list[dict[str, Any]] = []
    for world in (1, 2):
        launch(world, device, "parity", norms, str(folder / f"{world}.pt"))
        found.append(torch.load(folder / f"{world}.pt"))
    torch.manual_seed(0)
    start = untrained("resnet10", 10, small_stem=True).state_dict()
    assert float((found[0]["body.conv1.weight"] - start["body.conv1.weight"]).abs().max()) > 1e-3  # it was trained
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.long), TWO_GPUS])
def test_two_ranks_train_the_weights_of_a_lone_process(device: str, tmp_path: Path) -> None:
    compare(device, "fixed", tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_synchronised_batch_norm_on_two_gpus_equals_that_on_a_single_gpu(tmp_path: Path) -> None:
    compare("cuda", "synchronised", tmp_path)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.long), TWO_GPUS])
def test_gradients_are_exchanged_while_others_are_computed(device: str, tmp_path: Path) -> None:
    launch(2, device, "overlap", "own", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    if not found["computing"]:
        pytest.skip("the profiler sees no kernels on this machine")
    assert found["exchanges"] >= 2 and found["both"] >= 1, found


if __name__ == "__main__":  # a rank of the tests above
    with contexts.start() as this_rank:
        {"parity": parity, "overlap": overlap}[sys.argv[1]](this_rank, sys.argv[2], Path(sys.argv[3]))
