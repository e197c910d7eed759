"""A small version of every recipe trains, and continues where it was; the plan of each is printed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.config import Config, PretrainConfig, configs_dir
from dist_train.config.io import Parser
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.runs.run import open_run
from dist_train.stages import dry_run
from dist_train.stages.memory import FRAGMENTED, count_cost, largest_batch, memory_by_use, overhead
from dist_train.stages.pretrain import pretrain
from dist_train.training import checkpoint
from dist_train.training.metrics import read_metrics
from dist_train.training.optimizer import peak_lr
from launch.cli.main import main

RECIPES = sorted(path.stem for path in (configs_dir() / "recipes").glob("*.yaml"))


def recipe(name: str) -> Config:
    parser = Parser()
    parser.add_class_arguments(Config)
    made = parser.instantiate(parser.parse_path(str(configs_dir() / "recipes" / f"{name}.yaml")))
    return Config(**{key: getattr(made, key) for key in Config.__dataclass_fields__})


def small(name: str, config: Config) -> Config:
    """Run a recipe in seconds: its options, on the drawn images, with a small model for three epochs."""
    whole = recipe(name)
    side = 64 if whole.data.ramp_from else 32
    data = replace(
        whole.data, shards=config.data.shards, split=config.data.split, train_size=side,
        eval_resize=side + 8, eval_size=side,
        ramp_from=32 if whole.data.ramp_from else None, ramp_epochs=(0, 2), threads=1,
    )  # fmt: skip
    sgd = whole.pretrain.optimizer == "sgd"
    options = replace(
        whole.pretrain, model="resnet10" if whole.pretrain.stochastic_depth else "conv4",
        epochs=3 if sgd else 8, global_batch=24, warmup_epochs=1, milestones=[2],
        log_every=5, checkpoint_every=8, precision="fp32",
        lr=whole.pretrain.lr / peak_lr(whole.pretrain) * 0.02 if sgd else 5e-3,
    )  # fmt: skip
    return replace(config, data=data, pretrain=options)


def train(config: Config) -> dict[str, torch.Tensor]:
    pretrain(open_run(config), Context(), StopFlag(Context()))
    found: dict[str, torch.Tensor] = checkpoint.load(config.run_dir / "pretrain" / "final").tensors["model"]
    return found


OWN = ("classic_90", "rn50_16", "rsb_a2")
"""Recipes with options of their own; the others differ from them in numbers."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OWN else pytest.mark.long) for name in RECIPES]
)
def test_a_small_version_trains(name: str, config: Config) -> None:
    weights = train(small(name, config))
    assert all(value.isfinite().all() for value in weights.values())
    rows = read_metrics(config.run_dir / "pretrain" / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    best = max(row["eval/top1(%)"] for row in rows if "eval/top1(%)" in row)
    assert losses[-1] < losses[0] or best > 30, (losses, best)  # of 6 classes; a mixed batch's loss is noise


def test_what_is_drawn_in_a_step_is_drawn_again_after_a_resume(config: Config) -> None:
    config = small("rsb_a2", config)
    config = replace(config, pretrain=replace(config.pretrain, epochs=4, stochastic_depth=0.5, ema=0.8))
    whole = train(config)
    folder = config.run_dir / "pretrain"
    average = checkpoint.load(checkpoint.step_checkpoints(folder / "checkpoints")[-1]).tensors
    assert torch.equal(average["average"]["head.weight"], whole["head.weight"])  # the average goes on
    assert not torch.equal(average["model"]["head.weight"], whole["head.weight"])
    for gone in (checkpoint.step_checkpoints(folder / "checkpoints")[-1], folder / "final"):
        shutil.rmtree(gone)
    (folder / "done.json").unlink()
    again = train(config)
    assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.parametrize("name", RECIPES)
def test_headers_say_what_a_recipe_is(name: str) -> None:
    head = (configs_dir() / "recipes" / f"{name}.yaml").read_text()
    for word in (f"--config recipes/{name}\n", "Hardware:", "Expected time:", "Anchor:", "What differs:"):
        assert word in head, word


def test_dry_run_prints_the_plan_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--pretrain.model", "resnet10", "--data.train_size", "64", "--data.ramp_from", "32"]
    assert main(["run", "--config", "recipes/rn50_16", *options, "--dry-run", "--ranks", "8"]) == 0
    printed = capsys.readouterr().out
    for word in (
        "1,153,050 of 900",
        "18,016 steps",
        "8 ranks x 1 pass x 128",
        "32 to 64",
        "pretrain    resnet10 with a linear classifier, ddp, ",
        "GiB",
        "on 141 GB",
        "images/s",
    ):
        assert word in printed, (word, printed)
    assert not list(tmp_path.iterdir())
    assert main(["run", "--config", "recipes/rn50_16", "--dry-run", "--ranks", "7"]) == 1
    assert "divide into 7 ranks" in capsys.readouterr().err

    def too_small(*given: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    monkeypatch.setattr(dry_run, "measured_rate", too_small)
    options += ["--pretrain.classifier", "cosine"]
    assert main(["run", "--config", "recipes/rn50_16", *options, "--dry-run", "--ranks", "8"]) == 0
    printed = capsys.readouterr().out
    assert "not measured on this machine (CUDA out of memory. Tried to allocate" in printed
    assert "pretrain    resnet10 with a cosine classifier, " in printed


def test_estimates_are_what_a_real_pass_keeps() -> None:
    config = replace(recipe("rn50_16").pretrain, model="resnet18", precision="fp32", optimizer="lamb")
    one = count_cost(config, 1000, 224)
    assert one.parameters == 11_689_512 and one.flops == pytest.approx(2 * 1.81e9, rel=0.01)  # torchvision's 1.81 GMACs
    parts = memory_by_use(replace(config, optimizer="sgd", strategy="zero2"), one, 8, 4)
    assert parts["gradients"] == parts["optimiser"] == one.parameters and parts["buckets"] == 4 * one.parameters
    assert parts["weights"] == 4 * (one.parameters + one.buffers) + one.parameters  # the optimiser's copy of its part
    assert memory_by_use(config, one, 8, 4)["optimiser"] == 8 * one.parameters
    # ResNet-18 at 224: 2.5 M activations before and as many after each batch norm, of 4 bytes.
    assert 15e6 < one.saved < 30e6


@pytest.mark.parametrize("world", [1, 8])
@pytest.mark.parametrize(
    "options", [{}, {"precision": "fp32", "optimizer": "lamb"}, {"ema": 0.9, "mixup": 0.2}], ids=str
)
def test_the_batch_that_fits_is_the_largest(options: dict[str, Any], world: int) -> None:
    config = PretrainConfig(model="resnet18", **options)
    one = count_cost(config, 1000, 128)

    def taken(images: int) -> float:
        return FRAGMENTED * sum(memory_by_use(config, one, images, world).values()) + sum(
            overhead(128, images, world).values()
        )

    for size in (8e9, 80e9):
        images = largest_batch(config, 1000, 128, world, size)
        assert taken(images) <= size < taken(images + 1)
    assert largest_batch(config, 1000, 128, world, taken(1) - 1) == 0
