"""Draws that were found before their row was complete, on disk: by a share of the draws, or before a stop.

parts/METHOD.FIRST.npz  a part (fewshot/part.py) whose first draw has this number: "about" (JSON: what it was made from,
                        as in stages/row_store.py, its numbers of shots and seconds), and for each number of shots K
                        K.numbers [draws], K.metrics [metrics] (names), K.values [draws, metrics], K.seen_unseen and
                        K.forgetting [draws, points], and in joint scoring K.confusions [classes, classes]

Parts of a row have no draw in common: whoever makes one leaves out the draws of those that are there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.fewshot.part import Confusions, Part
from dist_train.fewshot.protocols.joint import Draw
from dist_train.files import atomic_write
from dist_train.runs.stage import log
from dist_train.stages.row_store import Origin, RowStore


class PartStore:
    """Read and write ``parts/`` in the folder of a run's evaluation."""

    def __init__(self, rows: RowStore) -> None:
        self.rows, self.folder = rows, rows.stage_folder / "parts"

    def read(self, name: str) -> list[Part]:
        """Return the parts of a method's row that fit together: of the inputs, options and code of now, and without a
        draw in common. Others, and damaged ones, are left out: their draws are computed again."""
        now = self.rows.origin(name)
        parts: list[Part] = []
        for path in sorted(self.folder.glob(f"{name}.*.npz")):
            try:
                part, origin = _read(path)
            except Exception as error:  # a damaged file raises nearly anything: json, zip, zlib, numpy
                log.warning("%s: damaged (%s); its draws are computed again", path, error)
                continue
            if (origin.inputs, origin.numbers, origin.code) != (now.inputs, now.numbers, now.code):
                log.warning("%s: made from other inputs, options or code; its draws are computed again", path)
            elif not any(part.numbers & other.numbers for other in parts):
                parts.append(part)
        return parts

    def write(self, name: str, part: Part) -> None:
        """Keep a part, which has a draw."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {**asdict(self.rows.origin(name)), "shots": list(part.draws), "seconds": part.seconds}
        arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
        for k, draws in part.draws.items():
            numbers = sorted(draws)
            metrics = list(draws[numbers[0]].metrics)
            arrays |= {
                f"{k}.numbers": np.array(numbers),
                f"{k}.metrics": np.array(metrics),
                f"{k}.values": np.array([[draws[n].metrics[metric] for metric in metrics] for n in numbers]),
                f"{k}.seen_unseen": np.stack([draws[n].seen_unseen for n in numbers]),
                f"{k}.forgetting": np.stack([draws[n].forgetting for n in numbers]),
            }
        arrays |= {f"{k}.confusions": counts for k, counts in part.confusions.items()}
        with atomic_write(self.folder / f"{name}.{min(part.numbers)}.npz") as file:
            np.savez_compressed(file, **arrays)

    def discard(self) -> None:
        """Remove all parts: the rows are complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> tuple[Part, Origin]:
    """Return a part, and what it was made from.

    Raises:
        Exception: nearly any, where the file is damaged.
    """
    with np.load(path) as arrays:
        about = json.loads(arrays["about"].item())
        draws: dict[str, dict[int, Draw]] = {}
        for k in about["shots"]:
            metrics = arrays[f"{k}.metrics"].tolist()
            columns = (arrays[f"{k}.{name}"] for name in ("numbers", "values", "seen_unseen", "forgetting"))
            draws[k] = {
                int(number): Draw(dict(zip(metrics, values.tolist(), strict=True)), seen_unseen, forgetting)
                for number, values, seen_unseen, forgetting in zip(*columns, strict=True)
            }
        confusions: Confusions = {k: arrays[f"{k}.confusions"] for k in draws if f"{k}.confusions" in arrays}
    origin = Origin(*(about[name] for name in Origin.__dataclass_fields__))
    return Part(draws, confusions, about["seconds"]), origin
