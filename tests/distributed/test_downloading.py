"""Ranks that need the same weights from the network at the same moment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from fixtures.downloads import WeightServer, use
from rank_process import run_rank
from safetensors.torch import save as saved_tensors

from dist_train.config import BackboneConfig, Config, PretrainConfig
from dist_train.training import checkpoint

TIMM, TORCHVISION = "timm:test_resnet.r160_in1k", "torchvision:shufflenet_v2_x0_5"


def run_rank_with(env: dict[str, str], arguments: list[str], error: str, url: str, path: str, folder: Path) -> None:
    """Run a rank that takes the server at ``url`` for huggingface.co, and the file ``path`` there for torchvision's."""
    patch = pytest.MonkeyPatch()
    use(url, folder, patch)
    entry: Any = torchvision.models.get_model_weights("shufflenet_v2_x0_5")["IMAGENET1K_V1"].value
    entry.url = url + path
    run_rank(env, arguments, error)


@pytest.mark.parametrize("source", [TIMM, TORCHVISION])
def test_two_ranks_fetch_weights_once(
    config: Config, ranks: Callable[..., Any], weight_server: WeightServer, tmp_path: Path, source: str
) -> None:
    torch.manual_seed(0)
    if source == TIMM:
        state = timm.create_model("test_resnet").state_dict()
        path = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    else:
        state = torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict()
        path = "/models/shufflenet.pth"
    content = saved_tensors(state)
    if source == TORCHVISION:
        torch.save(state, tmp_path / "file.pth")
        content = (tmp_path / "file.pth").read_bytes()
    weight_server.files[path], weight_server.slow = content, 1
    data = replace(config.data, train_size=224, eval_resize=256, eval_size=224)
    backbone = BackboneConfig(source=source, size=64, download=True)
    config = replace(config, data=data, pretrain=PretrainConfig(), backbone=backbone)
    started = ranks(
        2, config, "pretrain", target=partial(run_rank_with, url=weight_server.url, path=path, folder=tmp_path)
    )
    assert started.wait() == [0, 0], started.error(0) + started.error(1)
    assert weight_server.fetched() == 1
    assert started.error(0).count(f"downloading {weight_server.url}{path}") <= 1
    saved = checkpoint.load(config.run_dir / "pretrain" / "final")
    assert saved.state["origin"]["sha256"] == hashlib.sha256(content).hexdigest()
    names = [name for name in saved.tensors["model"] if name.startswith("body.")]
    assert all(torch.equal(saved.tensors["model"][name], state[name.removeprefix("body.")]) for name in names)
