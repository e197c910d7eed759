"""Faults of a GPU, planted in a rank without a GPU: errors with the texts of DALI, CUDA and torch."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rank_process import run_rank

# The text of DALI 2.4: the operator, the lines of the graph, the cause, and a last line.
FRAME = """Critical error in pipeline:
Error in MIXED operator `nvidia.dali.fn.decoders.image_slice`,
which was used in the pipeline definition with the following traceback:

  File "dali.py", line 1, in graph
    images = decoded(blobs)

encountered:

{said}
Current pipeline object is no longer valid."""


@dataclass(frozen=True)
class Fault:
    """Describe an error at the third batch, of DALI's ``pipeline`` or of a training ``step``.

    Attributes:
        said: its text.
        kind: name of its type: one of Python's, or of torch's.
        code: of an AcceleratorError.
    """

    place: str
    said: str
    kind: str = "RuntimeError"
    code: int | None = None

    def error(self) -> Exception:
        kind = getattr(builtins, self.kind, None) or getattr(torch, self.kind, RuntimeError)
        made: Exception = kind(FRAME.format(said=self.said) if self.place == "pipeline" else self.said)
        if self.code is not None:
            made.error_code = self.code  # type: ignore[attr-defined]
        return made


def run_faulty_rank(env: dict[str, str], arguments: list[str], error: str, fault: Fault) -> None:
    """Run a rank as launchers start it; the last rank has the fault."""
    from launch import rank
    from launch.cli import main as cli

    cli.main = lambda words: rank.start(Path(words[2]), words[0])  # type: ignore[assignment, arg-type, index]
    if env.get("RANK", "0") == str(int(env.get("WORLD_SIZE", "1")) - 1):
        plant(fault)
    run_rank(env, arguments, error)


def plant(fault: Fault) -> None:
    """Make this process fail."""
    from dist_train.data.loading import dali
    from dist_train.training.objective import Objective

    if fault.place == "step":
        Objective.loss = _failing(Objective.loss, fault)  # type: ignore[method-assign]
        return
    build = dali.build_pipeline

    def broken(*arguments: Any) -> Any:
        pipeline = build(*arguments)
        pipeline.outputs = _failing(pipeline.outputs, fault)
        return pipeline

    dali.build_pipeline = broken


def _failing(function: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise fault.error()
        return function(*arguments, **options)

    return call
