"""A trained network from elsewhere, with everything that is known about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from dist_train.config import Preprocessing
from dist_train.files import file_sha256
from dist_train.models.backbones.backbone import Backbone
from dist_train.models.backbones.trained_on import TrainingData


@dataclass(frozen=True)
class Origin:
    """Record where trained weights come from.

    Attributes:
        source: ``backbone.source``, with the tag of the weights where its library has several.
        file: name of the file of the weights.
        sha256: of that file.
        licence: of the weights, as their publisher names it; "" where it is not known.
        trained_on: the data set, in words ("ImageNet-1k"); "" where it is not known.
        seen: wnids of the classes that it was trained on, as far as they are known; None where nothing is known.
        complete: whether ``seen`` is all of them: a class that is not in it was not in the training.
    """

    source: str
    file: str
    sha256: str
    licence: str = ""
    trained_on: str = ""
    seen: tuple[str, ...] | None = None
    complete: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make it of its fields as JSON has them."""
        return cls(**{**values, "seen": None if values["seen"] is None else tuple(values["seen"])})

    @classmethod
    def of(cls, source: str, path: Path, licence: str | None, data: TrainingData, own: bool) -> Origin:
        """Record the file ``path``, hashing it.

        Args:
            data: of the weights that the source's name means.
            own: whether the file may be these weights. A file with another classifier was trained on other data, too.
        """
        sha256 = file_sha256(path)
        return cls(source, path.name, sha256, licence or "", data.words, data.seen, data.complete and own)


@dataclass(frozen=True)
class Pretrained:
    """Hold a trained network.

    Attributes:
        backbone: the network, on the CPU and in evaluation mode. Its ``head`` is the library's own classifier where
            that is linear, its weights are in the file and its classes are known; else it has no rows.
        preprocessing: what its images go through.
        classes: the wnid of each row of the head; None where the head has no rows.
        origin: where it comes from.
        notes: lines for the user: what of the file was left aside.
    """

    backbone: Backbone
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    origin: Origin
    notes: tuple[str, ...] = ()

    def noting(self, lines: Iterable[str]) -> Pretrained:
        """Return the same with further lines for the user before its own."""
        return replace(self, notes=(*lines, *self.notes))
