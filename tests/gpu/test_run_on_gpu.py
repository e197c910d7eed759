"""A run that is stopped in each of its stages ends in the same table as an undisturbed run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_train.config import Config
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.runs.run import open_run
from dist_train.stages.evaluate import evaluate
from dist_train.stages.extract import extract
from dist_train.stages.learn import learn
from dist_train.stages.pretrain import pretrain
from dist_train.training import checkpoint

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from gpu_check_work import figures

# Stage -> the question, of all its questions whether to stop, that gets a yes: in the middle of its work.
TOLD = {pretrain: 7, extract: 3, learn: 1, evaluate: 3}


class After(StopFlag):
    """Ask to stop at the ``asks``-th question."""

    def __init__(self, context: Context, asks: int) -> None:
        super().__init__(context)
        self.left = asks

    def requested(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.reason = "told by the test"
        return super().requested()


def finish(config: Config, context: Context, stopped: bool) -> list[str]:
    """Run all stages; return the names of the stages that were stopped, each once."""
    found = []
    for stage, asks in TOLD.items():
        if stopped:
            try:
                stage(open_run(config), context, After(context, asks))
            except Stopped:
                found.append(stage.__name__.rpartition(".")[2])
        stage(open_run(config), context, StopFlag(context))
    return found


def test_a_stopped_run_has_the_table_of_a_whole_run(
    device: torch.device, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = device.type == "cuda"
    # A GPU adds in any order where it may; the tolerance below allows for the rest. Without max-pooling, whose backward
    # pass on GPUs always adds in any order.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    config = replace(
        config,
        pretrain=replace(config.pretrain, small_stem=gpu, precision="fp32"),
        learn=replace(config.learn, steps=100, methods=["phi1", "phi2"]),
        evaluate=replace(config.evaluate, methods=["mean", "phi1", "phi2"]),
    )
    context = Context(device=device)
    assert finish(replace(config, name="whole"), context, stopped=False) == []
    assert finish(replace(config, name="stopped"), context, stopped=True) == [
        "pretrain",
        "extract",
        "learn",
        "evaluate",
    ]
    folders = [config.runs / name for name in ("whole", "stopped")]
    for part in ("pretrain/final", "learn/phi1/final", "learn/phi2/final"):
        one, other = (checkpoint.load(folder / part, torch.device("cpu")).tensors["model"] for folder in folders)
        for name, value in one.items():
            near = torch.allclose(value.float(), other[name].float(), rtol=1e-3, atol=1e-3)
            assert near if gpu else torch.equal(value, other[name]), (part, name)
    tables = [figures(json.loads((folder / "evaluate" / "results.json").read_text())) for folder in folders]
    assert len(tables[0]) > 20
    one_image = 100 / 18  # of 18 novel queries
    assert tables[0] == (pytest.approx(tables[1], abs=one_image) if gpu else tables[1])
