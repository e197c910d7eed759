"""Training steps on an emulated CUDA device (tests/fake_cuda): tensors stay on the device, the host never waits, and
the memory is as ``run --dry-run`` predicts."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.config import PretrainConfig
from dist_train.fewshot.methods import LEARNED
from dist_train.stages.memory import count_cost, memory_by_use

sys.path.insert(0, str(Path(__file__).parents[1] / "fake_cuda"))

import fake

pytestmark = [
    pytest.mark.skipif(fake.COMPILER is None, reason="no C compiler: apt-get install gcc libc6-dev"),
    pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch is built without CUDA"),
]

Case = dict[str, Any]

PRETRAIN: list[Case] = [
    {"stage": "pretrain", "side": 224, "classes": 1000, **options}
    for options in (
        {"model": "resnet50", "precision": "bf16", "global_batch": 256},
        {"model": "resnet50", "precision": "fp32", "global_batch": 256, "channels_last": False},
        {"model": "resnet18", "precision": "bf16", "global_batch": 64, "ema": 0.9},
        {"model": "resnet10", "precision": "fp16", "global_batch": 64, "clip_norm": 1.0},
        {"model": "resnet10", "precision": "fp32", "global_batch": 64},
        {"model": "resnet10", "precision": "tf32", "global_batch": 64, "accumulate": 2, "ema": 0.9},
        {"model": "resnet10", "precision": "bf16", "global_batch": 128, "accumulate": 2, "channels_last": False},
        {"model": "resnet10", "precision": "bf16", "global_batch": 64, "optimizer": "lars", "clip_norm": 1.0},
        {"model": "resnet18", "precision": "bf16", "global_batch": 64, "optimizer": "lamb", "loss": "bce", "ema": 0.9,
         "label_smoothing": 0.0, "mixup": 0.2, "cutmix": 1.0, "stochastic_depth": 0.1},
        {"model": "resnet10", "precision": "bf16", "global_batch": 1, "optimizer": "lamb"},
        {"model": "resnet10", "precision": "bf16", "global_batch": 1, "optimizer": "lars"},
        {"model": "resnet10", "precision": "fp32", "global_batch": 1},
    )
]  # fmt: skip
LEARN: list[Case] = [
    {"stage": "learn", "method": method, "precision": precision, "graphed": graphed}
    for method, (precision, graphed) in product(LEARNED, (("bf16", True), ("fp16", False), ("fp32", False)))
]
TINY: Case = {"stage": "pretrain", "side": 32, "classes": 10, "model": "resnet10", "global_batch": 4}
# Faults with the text of their error: two devices in an operator, and operations that make the host wait.
MIXED, WAITS, READS = "tensors on cpu and on cuda:0", "a copy between the device and the CPU", "Exception: aten."
FAULTS: list[tuple[Case, str]] = [
    ({**TINY, "fault": "labels"}, MIXED),
    ({**TINY, "fault": "constant"}, MIXED),
    ({**TINY, "fault": "index"}, MIXED),
    ({**LEARN[0], "fault": "labels"}, MIXED),
    ({**TINY, "fault": "cpu"}, WAITS),
    ({**TINY, "fault": "constant sent"}, WAITS),
    ({**TINY, "fault": "number sent"}, WAITS),
    ({**TINY, "fault": "number kept"}, WAITS),
    ({**TINY, "fault": "item"}, READS),
    ({**TINY, "fault": "if"}, READS),
    ({**TINY, "fault": "mask"}, READS),
    # Known (docs/training.md): an optimiser that is not fused asks for the scaler's verdict.
    ({**TINY, "precision": "fp16", "optimizer": "lamb"}, READS),
    ({**TINY, "precision": "fp16", "optimizer": "lars"}, READS),
]


def key(case: Case) -> str:
    return json.dumps(case, sort_keys=True)


def named(case: Case) -> str:
    return " ".join(str(value) for name, value in case.items() if name not in ("stage", "side", "classes"))


def parameters(cases: list[Case]) -> list[Any]:
    """Return the cases for parametrize; those of large networks take most of the time."""
    large = ("resnet50", "resnet18")
    return [
        pytest.param(case, id=named(case), marks=[pytest.mark.long] if case.get("model") in large else [])
        for case in cases
    ]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Return the result of each selected case, from a single process: PyTorch takes seconds to load."""
    selected = [item.callspec.params["case"] for item in request.session.items if item.path == request.path]  # type: ignore[attr-defined]
    cases = list({key(case): case for case in selected}.values())
    command = [sys.executable, str(fake.STUB.parent / "steps.py"), json.dumps(cases)]
    environment = fake.environment(tmp_path_factory.mktemp("stub"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return {key(case): result for case, result in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", parameters([*PRETRAIN, *LEARN]))
def test_a_step_stays_on_its_device_and_never_waits(case: Case, results: dict[str, Case]) -> None:
    assert "error" not in results[key(case)], results[key(case)]["error"]


@pytest.mark.parametrize(("case", "message"), FAULTS, ids=lambda given: named(given) if isinstance(given, dict) else "")
def test_a_step_that_leaves_its_device_or_waits_is_refused(case: Case, message: str, results: dict[str, Case]) -> None:
    assert message in results[key(case)].get("error", "nothing")


@pytest.mark.parametrize("case", parameters(PRETRAIN))
def test_dry_run_predicts_the_memory_of_a_step(case: Case, results: dict[str, Case]) -> None:
    """PyTorch's tracker agrees within 5%. With a single image, the fullest moment is in the optimiser's step."""
    options = {name: value for name, value in case.items() if name not in ("stage", "side", "classes")}
    config = PretrainConfig(**options)
    images = config.global_batch // config.accumulate
    said = sum(memory_by_use(config, count_cost(config, case["classes"], case["side"]), images, world=1).values())
    seen = results[key(case)]["peak"]
    assert said == pytest.approx(seen, rel=0.05)
    print(f"{named(case)}: {seen / 2**30:.2f} GiB, {said / seen:.3f}")
