"""The backbone's training: weights that it refuses to save, and checkpoints that it repairs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dist_train.config import Config
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.models.backbones.ours import drop_branches, untrained
from dist_train.runs.run import check_config, check_device, open_run
from dist_train.stages.backbone import load_backbone
from dist_train.stages.pretrain import pretrain
from dist_train.training import checkpoint, precision
from dist_train.training.objective import Objective
from dist_train.training.strategies.strategy import Strategy


def run(config: Config) -> None:
    pretrain(open_run(config), Context(), StopFlag(Context()))


@pytest.mark.parametrize("broken", [4, 10])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_weights_that_a_gradient_broke_are_not_saved(
    config: Config, monkeypatch: pytest.MonkeyPatch, broken: int, clip: float
) -> None:
    config = replace(config, pretrain=replace(config.pretrain, checkpoint_every=2, clip_norm=clip))
    backward, calls = Strategy.backward, []

    def worse(self: Any, loss: torch.Tensor) -> None:
        backward(self, loss)
        calls.append(1)
        if len(calls) == broken:  # of 10 steps; its loss is finite
            self.model.head.weight.grad *= float("inf")

    monkeypatch.setattr(Strategy, "backward", worse)
    with pytest.raises(UserError, match=rf"not finite at step {broken}; .*step-{broken - 2:08d}; .*--redo"):
        run(config)
    folder = config.run_dir / "pretrain"
    saved = [*checkpoint.step_checkpoints(folder / "checkpoints"), folder / "best"]
    assert len(saved) > 1 or broken == 4
    for path in saved:
        if path.exists():
            assert all(value.isfinite().all() for value in checkpoint.load(path).tensors["model"].values()), path
    assert not (folder / "final").exists() and not (folder / "done.json").exists()


def test_a_broken_model_is_never_the_best(config: Config) -> None:
    options = replace(config.pretrain, lr=1e12, warmup_epochs=0, log_every=100, checkpoint_every=100)
    with pytest.raises(UserError, match=r"not finite at step [2-5]; there is no checkpoint yet"):
        run(replace(config, pretrain=options))
    assert not (config.run_dir / "pretrain" / "best").exists()


def test_a_damaged_checkpoint_is_written_anew(config: Config) -> None:
    config = replace(config, pretrain=replace(config.pretrain, checkpoint_every=2, keep=4))
    run(config)
    folder = config.run_dir / "pretrain"
    for gone in (checkpoint.step_checkpoints(folder / "checkpoints")[-1], folder / "final"):
        shutil.rmtree(gone)
    (folder / "done.json").unlink()
    damaged = checkpoint.step_path(folder / "checkpoints", 8)
    (damaged / "tensors.pt").write_bytes(b"x")
    run(config)
    assert checkpoint.load(damaged).state["step"] == 8


def test_a_cosine_classifier_trains_continues_and_is_linear_at_the_end(config: Config) -> None:
    options = replace(config.pretrain, classifier="cosine", checkpoint_every=2, keep=9, ema=0.5)
    config = replace(config, pretrain=options)
    run(config)
    folder = config.run_dir / "pretrain"
    whole = checkpoint.load(folder / "final").tensors["model"]
    backbone = load_backbone(config, torch.device("cpu")).network
    assert type(backbone.head) is nn.Linear and not backbone.head.bias.any()
    lengths = backbone.head.weight.norm(dim=1)
    assert torch.allclose(lengths, lengths[:1]), "every row is of one length"
    for later in checkpoint.step_checkpoints(folder / "checkpoints")[2:]:
        shutil.rmtree(later)
    shutil.rmtree(folder / "final")
    (folder / "done.json").unlink()
    run(config)
    again = checkpoint.load(folder / "final").tensors["model"]
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)


def test_stochastic_depth_survives_synchronised_batch_norm() -> None:
    model: Any = nn.SyncBatchNorm.convert_sync_batchnorm(untrained("resnet10", 6))
    drop_branches(model, 0.5)
    assert sum(len(layer._forward_hooks) for layer in model.modules()) == 4
    model.body.layer4[0].train()
    out = model.body.layer4[0].bn2._forward_hooks.popitem()[1](model.body.layer4[0].bn2, (), torch.ones(400, 2, 1, 1))
    assert 120 < int((out.flatten(1).sum(1) == 0).sum()) < 280  # the last block's share: half


def test_targets_of_binary_cross_entropy(config: Config) -> None:
    objective = Objective(replace(config.pretrain, loss="bce", label_smoothing=0.0), 4)
    logits = torch.zeros(2, 4, requires_grad=True)
    objective.loss(logits, torch.tensor([[0.0, 0.3, 0.7, 0.0], [0.1, 0.9, 0.0, 0.0]])).backward()
    assert (logits.grad < 0).tolist() == [[False, True, True, False], [False, True, False, False]]  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1: must be 0 with pretrain.loss=bce"):
        replace(config.pretrain, loss="bce", label_smoothing=0.1)


def test_options_that_would_fail_hours_later_are_refused_at_the_start(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_has", lambda _: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for section in ("pretrain", "extract", "learn"):
        wrong = replace(config, **{section: replace(getattr(config, section), precision="fp16")})
        with pytest.raises(UserError, match=rf"{section}\.precision=fp16"):
            check_device(wrong)
    with pytest.raises(UserError, match="sync_batchnorm"):
        check_device(replace(config, pretrain=replace(config.pretrain, sync_batchnorm=True)))
    zero = replace(config.pretrain, strategy="zero2", deepspeed={"fp16": {}})
    with pytest.raises(UserError, match=r"deepspeed\.fp16"):
        check_config(replace(config, pretrain=zero), 1)
