"""A trained network from elsewhere, with everything that is known about it."""

from __future__ import annotations

from dataclasses import dataclass

from dist_train.config import BackboneConfig, Preprocessing
from dist_train.errors import UserError
from dist_train.models.backbones.backbone import Backbone


@dataclass(frozen=True)
class Origin:
    """Record where trained weights come from.

    Attributes:
        source: ``backbone.source``.
        file: name of the file of the weights.
        sha256: of that file.
        licence: of the weights, as their publisher names it; "" where it is not known.
        trained_on: the data set, in words ("ImageNet-1k"); "" where it is not known.
        seen: wnids of the classes that it was trained on; None where that is not known.
    """

    source: str
    file: str
    sha256: str
    licence: str = ""
    trained_on: str = ""
    seen: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Pretrained:
    """Hold a trained network.

    Attributes:
        backbone: the network, on the CPU; its ``head`` is the library's own classifier where it has a linear one, and
            zeros else.
        preprocessing: what its images go through.
        classes: the wnid of each row of the head; None where there is no head, or its classes are not known.
        origin: where it comes from.
    """

    backbone: Backbone
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    origin: Origin


def open_pretrained(options: BackboneConfig) -> Pretrained:
    """Open a trained network.

    Raises:
        UserError: there is no such network, its weights are not there, or they do not fit.
    """
    raise UserError(f"backbone.source={options.source}: not known")
