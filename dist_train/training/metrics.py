"""The metrics of a run, the same in TensorBoard and in ``metrics.jsonl``, safe to resume.

Tags carry their units: ``time/throughput(images/s)``. Only rank 0 writes.
"""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from dist_train.files import write_text

log = logging.getLogger(__name__)


class MetricsWriter:
    """Write a stage's metrics, continued at ``step``.

    Metrics that an interrupted run wrote past its last checkpoint are taken back: lines of metrics.jsonl with a later
    step are removed, and TensorBoard forgets them (``purge_step``).
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        rows = read_metrics(self.path)
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows) or (self.path.exists() and not self.path.read_bytes().endswith(b"\n")):
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a", buffering=1)
        self.board = SummaryWriter(str(folder / "tb"), purge_step=step + 1, flush_secs=10)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a line of metrics.jsonl, and a scalar for each value to TensorBoard.

        A full disk does not end a run of days: it is logged, and the line is missing.
        """
        with self._logged(f"step {step} is missing"):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        with self._logged(f"step {step} is missing in TensorBoard"):
            for tag, value in values.items():
                self.board.add_scalar(tag, value, step)

    def close(self) -> None:
        """Close both files."""
        for output in (self.file, self.board):
            with self._logged("closed early"):
                output.close()

    @contextmanager
    def _logged(self, loss: str) -> Iterator[None]:
        """Log an error of the disk, with what is lost by it, and go on."""
        try:
            yield
        except OSError as error:
            log.error("%s: NOT WRITTEN (%s), %s; make room on the disk", self.path, error.strerror, loss)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl, without a last line that was cut off in writing."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def reproducible(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without measurements of time and memory: the values that a repeated run repeats."""
    measured = ("time/", "memory/", "checkpoint/", "progress/seconds")
    return [{tag: value for tag, value in row.items() if not tag.startswith(measured)} for row in rows]


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory in GiB: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
