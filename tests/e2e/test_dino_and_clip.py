"""Networks that were trained without labels, in a whole run: DINOv2, and image towers of CLIP."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from dist_train.config import BackboneConfig, Config, PretrainConfig, to_yaml
from dist_train.data.activations import load
from dist_train.data.loading.loader import eval_batches
from dist_train.distributed.context import Context
from dist_train.runs.run import open_run
from dist_train.stages.backbone import load_backbone
from launch.cli.main import main


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", 48),
        ("vit_small_patch14_dinov2.lvd142m", 56),
        pytest.param("vit_base_patch32_clip_224.openai", 224, marks=pytest.mark.long),
        pytest.param("vit_small_patch14_reg4_dinov2.lvd142m", 98, marks=pytest.mark.long),
        pytest.param("resnet50_clip.openai", 96, marks=pytest.mark.long),
    ],
)
def test_a_whole_run(
    name: str, size: int, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / f"{name}.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(name).state_dict(), path)  # of the weights' own size
    data = replace(config.data, train_size=224, eval_resize=256, eval_size=224)
    backbone = BackboneConfig(source=f"timm:{name}", weights=path, size=size)
    learn = replace(config.learn, methods=["phi1"], steps=8)
    evaluate = replace(config.evaluate, methods=["mean", "phi1"], draws=2, shots=[1])
    config = replace(config, data=data, pretrain=PretrainConfig(), backbone=backbone, learn=learn, evaluate=evaluate)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert main(["run", "--config", str(tmp_path / "config.yaml")]) == 0
    assert "are made in closed form" in caplog.text and "| φ1 |" in capsys.readouterr().out

    loaded = load_backbone(config, torch.device("cpu"))
    assert loaded.preprocessing.size == size and loaded.origin and loaded.origin.source == f"timm:{name}"
    overlay = {"file": str(path)}
    options = {"img_size": size} if name.startswith("vit") else {}
    timms = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
    stored = load(config.run_dir / "extract", "novel_val")
    view = open_run(config).view("val", "novel")
    batches = eval_batches(view, stored.ids, config.data, 64, Context(), preprocessing=loaded.preprocessing)
    with torch.inference_mode():
        wanted = torch.cat([own_features(timms, batch.images) for batch in batches]).numpy()
    np.testing.assert_allclose(stored.rows.astype(np.float32), wanted, rtol=2e-3, atol=2e-3)

    origin = json.loads((config.run_dir / "provenance.json").read_text())["backbone"]
    assert origin["licence"] and origin["trained_on"] and origin["novel_seen"] is None
    report = html.unescape((config.run_dir / "evaluate" / "report.html").read_text())
    assert name in report and origin["trained_on"] in report


def own_features(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return timm's features of images, as its documentation gives them."""
    features: torch.Tensor = network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return features
