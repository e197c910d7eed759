"""A rank whose GPU fails is started again; a rank that is out of memory, or meets a bad image, is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from faults import Fault, run_faulty_rank

from dist_train.config import Config, MonitorConfig
from dist_train.errors import CRASHED, FAILED, LOST, STOPPED
from launch.restart import begin, decide

Start = Callable[..., Any]
ECC = "CUDA runtime API error cudaErrorECCUncorrectable (214):\nuncorrectable ECC error encountered"
OUT = (
    "CUDA out of memory. Tried to allocate 392.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 45.25 MiB is "
    "free. Including non-PyTorch memory, this process has 79.06 GiB memory in use. If reserved ..."
)


def reported_error(config: Config) -> str:
    return str(json.loads((config.run_dir / "error.json").read_text())["message"])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("pipeline", ECC), "PipelineError: DALI: CUDA runtime API error cudaErrorECCUncorrectable (214)"),
        (Fault("pipeline", "Failed to decode sample #3 : "), "PipelineError: DALI failed, though its decoder on the"),
        (Fault("step", "CUDA error: uncorrectable ECC error encountered\nSearch for", "AcceleratorError", 214),
         "AcceleratorError: CUDA error: uncorrectable ECC error encountered"),
        (Fault("step", "CUDA error: unspecified launch failure\nSearch for", "RuntimeError"),
         "RuntimeError: CUDA error: unspecified launch failure"),
    ],
    ids=["ecc-in-dali", "decoding-and-no-bad-image", "ecc-in-torch", "older-torch"],
)  # fmt: skip
def test_a_gpu_that_fails_is_a_crash_and_starts_again(config: Config, ranks: Start, fault: Fault, said: str) -> None:
    begin(config.run_dir, "1")
    started = ranks(1, config, "pretrain", target=partial(run_faulty_rank, fault=fault))
    assert started.wait() == [CRASHED], started.error(0)
    assert reported_error(config).startswith(said)
    assert decide(config.run_dir, "1", CRASHED, 3).code == STOPPED
    assert "replaced by" not in started.error(0)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("step", OUT, "OutOfMemoryError"), "of which 45.25 MiB is free); pretrain.global_batch=24 is 24 images"),
        (Fault("step", "CUDA error: out of memory\nSearch for", "AcceleratorError", 2), "--pretrain.accumulate 2"),
        (
            Fault("step", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "or on 2 ranks it continues, with 12",
        ),
        (Fault("pipeline", "CUDA allocation failed"), "DALI: CUDA allocation failed"),
        (Fault("pipeline", "Can't allocate 4096 bytes on host."), "out of machine memory"),
    ],
    ids=["torch", "cuda", "cublas", "dali", "page-locked"],
)
def test_out_of_memory_is_one_line_and_is_not_started_again(
    config: Config, ranks: Start, fault: Fault, said: str
) -> None:
    begin(config.run_dir, "1")
    started = ranks(1, config, "pretrain", target=partial(run_faulty_rank, fault=fault))
    assert started.wait() == [FAILED], started.error(0)
    (line,) = [line for line in started.error(0).splitlines() if "error:" in line]
    assert line.startswith("dist-train: error: pretrain: out of ") and said in line and "of 10'" in line
    assert "Traceback" not in started.error(0)
    assert f"dist-train: error: {reported_error(config)}" == line
    assert decide(config.run_dir, "1", FAILED, 3).code == FAILED


def test_the_other_ranks_leave_at_once_with_the_reason_of_the_failed_rank(config: Config, ranks: Start) -> None:
    """A rank that knows its own fault does not wait for news of another rank's (here: 600 s)."""
    config = replace(config, monitor=MonitorConfig(rank_timeout=600, hang_timeout=600))
    ecc = partial(run_faulty_rank, fault=Fault("pipeline", ECC))
    started = ranks(2, replace(config, name="ecc"), "pretrain", target=ecc)
    assert started.wait() == [LOST, CRASHED], started.error(0) + started.error(1)
    assert "rank 0 leaves: rank 1 failed: PipelineError: DALI: CUDA runtime API error" in started.error(0)
    assert "the same command continues" in started.error(0)

    defect = partial(run_faulty_rank, fault=Fault("step", "no such key", "KeyError"))
    started = ranks(2, replace(config, name="defect"), "pretrain", target=defect)
    assert started.wait() == [LOST, CRASHED], started.error(0) + started.error(1)
    assert "rank 0 leaves: rank 1 failed: KeyError: 'no such key'; the same command" in started.error(0)

    out = partial(run_faulty_rank, fault=Fault("step", OUT, "OutOfMemoryError"))
    started = ranks(2, replace(config, name="memory"), "pretrain", target=out)
    assert started.wait() == [FAILED, FAILED], started.error(0) + started.error(1)
    assert "dist-train: error: rank 1: pretrain: out of GPU memory" in started.error(1)
    assert "rank 1 failed: pretrain: out of GPU memory" in started.error(0)
    assert "12 images a pass on each of 2 ranks; --pretrain.accumulate 2 --redo" in started.error(0)
