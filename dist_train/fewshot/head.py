"""Heads: methods without a training, whose novel scores are calibrated like those of phi+."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F

from dist_train.fewshot import calibration
from dist_train.fewshot.calibration import Calibration
from dist_train.fewshot.method import Base, Method, Number, Scorer, Support
from dist_train.fewshot.moments import Moments

Transform = Callable[[torch.Tensor], torch.Tensor]
POWER = {"head_power": Number(1.0)}


class Head(Method):
    """Score base classes by what ``__init__`` prepared, and novel classes by ``novel_scores``, calibrated
    (fewshot/calibration.py)."""

    calibrated = True
    numbers: ClassVar = calibration.NUMBERS

    def __init__(self, name: str, base: Base) -> None:
        self.base = base

    @abstractmethod
    def novel_scores(self, support: Support) -> Scorer:
        """Return ``take``'s function before its calibration."""

    @cached_property
    def calibrate(self) -> Calibration:
        """The calibration, whose images are scored when the first supports come."""
        return Calibration.from_base(self.base, self.base_scores, self.cost)

    def take(self, support: Support) -> Scorer:
        return self.calibrate(self.novel_scores(support))


class Centring:
    """Map activations to vectors of length 1 about the base classes: power, sphere, centre, sphere.

    x -> |x|^p with its sign, to length 1, less the mean of the base classes, to length 1 again: "PEME" (Hu et al. 2022,
    "Squeezing Backbone Feature Distributions to the Max", Algorithms 15(5), 147, section 3.3; ``getRunSet`` of
    ``test_standard_bms.py`` of yhu01/BMS). They have p = 0.5; each head's own was chosen on pseudo-novel classes
    (docs/results/heads.md). In their code the centre is the mean of a task's supports and queries. Bendou et al. 2022
    (EASY; ``preprocess`` and ``centering`` of ``utils.py`` of ybendou/easy) take the mean over all base images, and in
    their commands ("ME") neither a power nor the first sphere. Here the centre is the mean of the class means that were
    mapped to the sphere, which needs no pass over the images.
    """

    def __init__(self, centre: torch.Tensor, power: float) -> None:
        self.centre, self.power = centre, power

    @classmethod
    def of(cls, means: torch.Tensor, power: float) -> Centring:
        """Return the centring about classes with these means [classes, C]."""
        return cls(_sphere(means, power).mean(0), power)

    def __call__(self, activations: torch.Tensor) -> torch.Tensor:
        """Return [..., C] for activations [..., C]."""
        return F.normalize(_sphere(activations, self.power) - self.centre, dim=-1)


def _sphere(activations: torch.Tensor, power: float) -> torch.Tensor:
    return F.normalize(activations.sign() * activations.abs() ** power, dim=-1)


def centred_moments(base: Base, power: float) -> tuple[Centring, Moments]:
    """Return the centring with this power, and the moments of centred activations, from one pass over the stored
    activations for all methods of an evaluation that have the same power."""
    centring, device = Centring.of(base.means, power), base.means.device
    name = f"moments of centred activations, power={power}"
    return centring, base.shared(name, lambda: Moments.of(base.train, device, base.watch, transform=centring))
