"""The stage ``networks`` on two ranks: DDP and ZeRO, a stop in between, and the command line of every launcher."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dist_train.config import Config, NetworksConfig
from dist_train.errors import STOPPED
from dist_train.training.metrics import read_metrics

PIECES = ("triplet_network", "finetune_network/seed0-draw0-shots1")


def losses(config: Config, piece: str) -> list[float]:
    rows = read_metrics(config.run_dir / "networks" / piece / "metrics.jsonl")
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_two_ranks_train_alike_under_ddp_and_zero_and_through_stops(
    config: Config, with_backbone: Callable[..., Config], ranks: Callable[..., Any]
) -> None:
    networks = NetworksConfig(
        finetune_epochs=1, triplet_epochs=1, finetune_lr=0.01, global_batch=24, precision="fp32",
        log_every=1, checkpoint_every=1,
    )  # fmt: skip
    rows = ["mean", "phi1", "triplet_network1", "finetune_network"]
    config = replace(
        config,
        networks=networks,
        learn=replace(config.learn, methods=["phi1"], steps=4),
        evaluate=replace(config.evaluate, methods=rows, draws=2, shots=[1]),
    )
    whole = with_backbone(replace(config, name="whole"), extracted=True)
    assert set(ranks(2, whole, "networks").wait(300)) == {0}
    stopped = with_backbone(config, extracted=True)
    assert set(ranks(2, stopped, "networks", "--max-minutes", "0.0001").wait(300)) == {STOPPED}
    zero = replace(stopped, networks=replace(networks, strategy="zero1"))
    assert set(ranks(2, zero, "run").wait(300)) == {0}
    for piece in PIECES:
        assert len(losses(whole, piece)) == 5
        assert losses(zero, piece) == pytest.approx(losses(whole, piece), abs=1e-3)
    table = json.loads((zero.run_dir / "evaluate" / "results.json").read_text())["methods"]
    assert list(table) == rows
    assert [len(table[name]["1"]["novel_top1"]["draws"]) for name in rows] == [2, 2, 2, 1]
