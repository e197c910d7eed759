"""What an evaluation leaves for TensorBoard: accuracy against shots, curves, and the classes in the projector."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from dist_train.fewshot.results import Results
from dist_train.report import class_vectors

_COMPONENTS = 64
"""Principal components of a vector that the projector gets; 1000 classes take 1.4 MB."""


def write_tensorboard(folder: Path, results: Results) -> None:
    """Write accuracy with the number of shots as the step, and the curves of joint scoring.

    The step of the seen-unseen curve is novel top-1 in percent, that of the forgetting curve the number of novel
    classes. What the folder held before is deleted.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name, result in results.methods.items():
        writer = SummaryWriter(str(folder / name))
        for shots, metrics in result.shots.items():
            for metric, interval in metrics.items():
                writer.add_scalar(f"fewshot/{metric}(%)", interval.mean, shots)
        for shots, curves in result.curves.items():
            for title, curve, step in (
                ("seen_unseen", curves.seen_unseen, "novel top-1, %"),
                ("forgetting", curves.forgetting, "novel classes"),
            ):
                for x, y in enumerate(curve.mean):
                    writer.add_scalar(f"{title}, {shots}-shot/base_top1(%) by step ({step})", y, x)
        writer.close()


def write_projector(folder: Path, vectors: Mapping[str, np.ndarray], maps: Mapping[str, Any]) -> None:
    """Write the vectors that are mapped, with the classes' names and groups.

    Args:
        vectors: title -> float32 [classes, C].
        maps: from ``class_vectors.class_maps``; where it is empty, nothing is written.
    """
    if not maps:
        return
    writer = SummaryWriter(str(folder))
    labels = [[" ".join(entry[key].split()) for key in ("name", "wnid", "group")] for entry in maps["classes"]]
    for title in maps["maps"]:
        components = _principal_components(vectors[title])
        writer.add_embedding(components, labels, tag=title, metadata_header=["name", "wnid", "group"])
    writer.close()


def _principal_components(rows: np.ndarray) -> npt.NDArray[np.float32]:
    """Project unit rows [N, C] on their first 64 principal components."""
    unit = class_vectors.unit(rows)
    left, scale, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    components: npt.NDArray[np.float32] = (left * scale)[:, :_COMPONENTS].round(4)
    return components
