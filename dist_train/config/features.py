"""Configuration of features from elsewhere: activations in files, in place of images and a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_train.config.checks import require


@dataclass(kw_only=True)
class FeaturesConfig:
    """Configure activations that another program has computed, with their labels."""

    train: Path
    """Features of the training images. .npz with the arrays ``activations`` [N, D] and ``labels`` [N]; NAME.npy [N, D]
    beside NAME.labels.npy or NAME.labels.txt (a label on each line); or .parquet, a file or a folder of files, with
    columns of these names."""
    val: Path
    """Features of the validation images, in any of these forms."""
    activations: str = "activations"
    """Name of the array or column of activations."""
    labels: str = "labels"
    """Name of the array or column of labels: names of classes, or their numbers."""
    classes: Path | None = None
    """Names of numbered classes: a text file, whose first line is class 0. Not needed where an .npz has an array
    ``classes``, or a parquet file the names of Hugging Face."""
    scale: float = 1.0
    """Factor of all values. They are stored as float16, which holds 6e-5 to 65504 with three digits; what does not fit
    is refused. It is a temperature too, where a method does not normalise its queries."""

    def __post_init__(self) -> None:
        require(0 < self.scale < float("inf"), "features.scale", self.scale, "> 0")
        require(bool(self.activations), "features.activations", self.activations, "a name")
        require(bool(self.labels), "features.labels", self.labels, "a name")
