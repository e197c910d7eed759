"""Accuracy and the classes' vectors in TensorBoard."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from dist_train.fewshot.results import Results
from dist_train.report.class_vectors import Array, ClassMaps, principal_components
from dist_train.report.wording import describe_backbone

_PROJECTED = 64
"""Dimensions of the projector's vectors, which are principal components. 1000 classes take 1.4 MB."""


def write_tensorboard(folder: Path, results: Results) -> None:
    """Write each method's accuracy, whose step is the number of shots, its curves, and what the backbone has seen.

    The step of the seen-unseen curve is novel top-1 in percent, that of the forgetting curve the number of novel
    classes. What the folder held before is removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if backbone := describe_backbone(results):
        writer = SummaryWriter(str(folder))
        writer.add_text("backbone", backbone)
        writer.close()
    for method, result in results.methods.items():
        writer = SummaryWriter(str(folder / method))
        for k, metrics in result.shots.items():
            for metric, value in metrics.items():
                writer.add_scalar(f"fewshot/{metric}(%)", value.mean, k)
        for k, curves in result.curves.items():
            for name, curve, step in (
                ("seen_unseen", curves.seen_unseen, "novel top-1, %"),
                ("forgetting", curves.forgetting, "novel classes"),
            ):
                for x, y in enumerate(curve.mean):
                    writer.add_scalar(f"{name}, {k}-shot/base_top1(%) by step ({step})", y, x)
        writer.close()


def write_projector(folder: Path, vectors: Mapping[str, Array], maps: ClassMaps) -> None:
    """Write the vectors of the kinds that have a map, with the classes' names and groups."""
    writer = SummaryWriter(str(folder))
    labels = [[" ".join(text.split()) for text in (entry.name, entry.wnid, entry.group)] for entry in maps.classes]
    for kind in maps.maps:
        components = principal_components(vectors[kind], _PROJECTED)
        writer.add_embedding(components, labels, tag=kind, metadata_header=["name", "wnid", "group"])
    writer.close()
