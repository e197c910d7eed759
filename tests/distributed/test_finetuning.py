"""Training that starts from a trained network: frozen layers, rates by layer, DDP and ZeRO, and a resume in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dist_train.config import BackboneConfig, Config, PretrainConfig
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import STOPPED, UserError
from dist_train.models.backbones import Backbone, build
from dist_train.runs.run import open_run
from dist_train.stages.extract import extract
from dist_train.stages.pretrain import pretrain
from dist_train.training import checkpoint
from dist_train.training.finetuning import freeze, layer_groups
from dist_train.training.metrics import read_metrics
from dist_train.training.optimizer import make_optimizer, set_lr
from launch.cli.main import main

VIT, NET = "vit_tiny_patch16_224", "resnet10t"
INIT = BackboneConfig(source=f"timm:{VIT}", size=48)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a file of random weights for each network."""
    folder = tmp_path_factory.mktemp("weights")
    for name, size in ((VIT, {"img_size": 48}), (NET, {})):
        torch.manual_seed(0)
        torch.save(timm.create_model(name, **size).state_dict(), folder / f"{name}.pth")
    return folder


def tuning(config: Config, path: Path, size: int, **options: Any) -> Config:
    """Return the configuration of a run that starts from the network whose weights are in ``path``."""
    init = BackboneConfig(source=f"timm:{path.stem}", weights=path, size=size)
    data = replace(config.data, train_size=size, eval_resize=256, eval_size=224)
    small = replace(config.pretrain, model="resnet50", init=init, epochs=1, lr=0.01, log_every=1, checkpoint_every=2)
    return replace(config, data=data, pretrain=replace(small, **options))


def losses(run: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run / "pretrain" / "metrics.jsonl") if "train/loss" in row]


def final(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = checkpoint.load(run / "pretrain" / "final").tensors["model"]
    return tensors


def vit() -> Backbone:
    torch.manual_seed(0)
    return build({"source": "timm", "name": VIT, "classifier": None, "num_classes": 4, "size": 48})


def test_rates_fall_with_the_distance_from_the_classifier() -> None:
    network, config = vit(), PretrainConfig(init=INIT, layer_decay=0.5, head_lr_scale=10, weight_decay=0.1)
    groups = layer_groups(network, config)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == len(list(network.parameters()))
    names = dict(network.named_parameters())
    blocks = [scales[id(names[f"body.blocks.{number}.mlp.fc1.weight"])] for number in range(12)]
    assert blocks == [0.5**distance for distance in range(12, 0, -1)]
    assert scales[id(names["body.patch_embed.proj.weight"])] == 0.5**13 == scales[id(names["body.cls_token"])]
    assert scales[id(names["head.weight"])] == 10
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert id(names["body.pos_embed"]) not in decayed and id(names["body.blocks.0.attn.qkv.weight"]) in decayed
    assert not decayed & {id(p) for name, p in names.items() if name.endswith("bias") or ".norm" in name}
    optimizer = make_optimizer(network, config)
    set_lr(optimizer, 0.2)
    assert sorted({group["lr"] for group in optimizer.param_groups})[-2:] == pytest.approx([0.1, 2.0])


def test_freezing_ends_at_a_layer_or_at_a_whole_stage() -> None:
    for last, count in (("blocks.3", 4), ("blocks", 12), ("patch_embed", 0)):
        network = vit()
        freeze(network, last)
        frozen = [p.requires_grad is False for p in network.body.get_submodule("blocks").parameters()]
        assert sum(frozen) == len(frozen) * count // 12
        assert not network.body.get_parameter("pos_embed").requires_grad and network.head.weight.requires_grad
    with pytest.raises(UserError, match=r"pretrain\.freeze=block: no layer of this network; give one of patch_embed.*"):
        freeze(vit(), "block")


def test_frozen_batch_norms_keep_their_statistics(config: Config, weights: Path) -> None:
    config = tuning(config, weights / f"{NET}.pth", 64, freeze="layer2", ema=0.5)
    run = open_run(config)
    for stage in (pretrain, extract):
        stage(run, Context(), StopFlag(Context()))
    before, after = torch.load(weights / f"{NET}.pth"), final(run.dir)
    same = {name for name in before if not name.startswith("fc") and torch.equal(before[name], after[f"body.{name}"])}
    frozen = {name for name in before if name.startswith(("conv1", "bn1", "layer1", "layer2"))}
    assert frozen <= same and any("running_mean" in name for name in frozen)
    assert not {name for name in same - frozen if "running_" in name}
    provenance = json.loads((run.dir / "provenance.json").read_text())["backbone"]
    assert provenance["source"].startswith(f"timm:{NET}") and provenance["file"] == f"{NET}.pth"
    assert main(["verify-resume", str(run.dir), "--batches", "1"]) == 0


def test_a_vit_is_tuned_alike_under_ddp_and_zero_and_through_a_resume(
    config: Config, weights: Path, ranks: Callable[..., Any]
) -> None:
    """Two ranks; the second run begins under DDP, is stopped after a step or two, and goes on under ZeRO 1."""
    config = tuning(config, weights / f"{VIT}.pth", 48, freeze="blocks.7", layer_decay=0.7, head_lr_scale=5, epochs=2)
    whole = replace(config, name="whole")
    assert set(ranks(2, whole, "pretrain").wait(300)) == {0}
    assert set(ranks(2, config, "pretrain", "--max-minutes", "0.0001").wait(300)) == {STOPPED}
    zero = replace(config, pretrain=replace(config.pretrain, strategy="zero1"))
    assert set(ranks(2, zero, "pretrain").wait(300)) == {0}
    assert len(losses(whole.run_dir)) == 10
    assert losses(config.run_dir) == pytest.approx(losses(whole.run_dir), abs=1e-4)
    one, other, before = final(whole.run_dir), final(config.run_dir), torch.load(weights / f"{VIT}.pth")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4
    moved = {name for name in before if f"body.{name}" in one and not torch.equal(before[name], one[f"body.{name}"])}
    assert moved and all(name.startswith(("blocks.8", "blocks.9", "blocks.10", "blocks.11", "norm")) for name in moved)


def test_stage_3_of_zero_keeps_what_is_frozen(config: Config, weights: Path, ranks: Callable[..., Any]) -> None:
    config = tuning(config, weights / f"{NET}.pth", 64, freeze="layer2", strategy="zero3")
    assert set(ranks(2, config, "pretrain", "--max-minutes", "0.0001").wait(300)) == {STOPPED}
    assert set(ranks(2, config, "pretrain").wait(300)) == {0}
    ddp = replace(config, name="ddp", pretrain=replace(config.pretrain, strategy="ddp"))
    assert set(ranks(2, ddp, "pretrain").wait(300)) == {0}
    one, other = final(config.run_dir), final(ddp.run_dir)
    assert max(float((one[name].float() - other[name].float()).abs().max()) for name in one) < 1e-4


def test_sizes_that_do_not_fit_and_lost_weights_are_refused(config: Config, weights: Path, tmp_path: Path) -> None:
    config = tuning(config, weights / f"{VIT}.pth", 48)
    for wrong, message in (
        (replace(config, data=replace(config.data, train_size=64)), "data.train_size=64: .* --data.train_size 48"),
        (tuning(config, tmp_path / f"{VIT}.pth", 48), "vit_tiny_patch16_224.pth: "),
        (tuning(config, weights / f"{VIT}.pth", 48, freeze="layer1"), "pretrain.freeze=layer1: no layer"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(open_run(wrong), Context(), StopFlag(Context()))
    assert not config.run_dir.exists()
