"""Configuration of the images: how they are drawn, packed, split, loaded and cached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_train.config.backbone import MAX_RESIZE, MAX_SIZE, Preprocessing
from dist_train.config.checks import at_least, require

Duplicates = Literal["keep", "drop", "fail"]
Orientation = Literal["exif", "stored"]
TRAINING_CROPS = ("train_size", "scale", "ratio", "augment", "augment_ops", "augment_magnitude", "augment_std",
                  "ramp_from", "ramp_epochs")  # fmt: skip
"""Keys of ``data`` that only the training of a network obeys."""


@dataclass(kw_only=True)
class DrawConfig:
    """Configure the images that the program draws, so that everything can be tried without data."""

    base_classes: int = 90
    """Number of base classes."""
    novel_classes: int = 10
    """Number of novel classes."""
    train_per_class: int = 100
    """Training images per class."""
    val_per_class: int = 20
    """Validation images per class."""
    size: int = 64
    """Typical longer side in pixels; the size of each image differs a little from it."""
    seed: int = 0
    """Seed of the drawing."""

    def __post_init__(self) -> None:
        at_least(self, "draw", 1, "base_classes", "novel_classes", "train_per_class", "val_per_class")
        at_least(self, "draw", 16, "size")
        require(0 <= self.seed < 2**32, "draw.seed", self.seed, "in [0, 2^32)")


@dataclass(kw_only=True)
class PackConfig:
    """Configure how archives or folders become shards."""

    train: Path | None = None
    """ILSVRC2012_img_train.tar (a tar of one tar per wnid), a folder with one folder per class, a flat folder or tar of
    images named after their wnid, or parquet files of Hugging Face (a folder or a pattern)."""
    val: Path | None = None
    """ILSVRC2012_img_val.tar or a flat folder, a folder with one folder per class, or parquet files."""
    devkit: Path | None = None
    """Labels of a flat validation set: ILSVRC2012_devkit_t12.tar.gz, or LOC_val_solution.csv of Kaggle, which is found
    without this option where Kaggle puts it. Not needed where names end with the wnid, as Hugging Face has them."""
    val_share: float | None = None
    """Without val: the share of each class's images, drawn by the seed, that becomes the validation set; at least one
    image."""
    shard_mb: float = 128.0
    """Target size of a shard in megabytes (10^6 bytes). 128 is large enough for sequential disks
    and object stores and small enough to cache and to verify one at a time."""
    shorter_side: int | None = None
    """Re-encode: shrink so that the shorter side has this many pixels. Default: bytes as they are."""
    quality: int | None = None
    """Re-encode: JPEG quality, 1 to 100 (default 90 where --shorter_side is given)."""
    on_duplicates: Duplicates = "keep"
    """What to do with images whose bytes are the same in train and in val, or under two classes. keep: count and list
    them. drop: leave out the training copy of an image in both, and every copy of an image under two classes. fail:
    stop; another start with another choice continues from there."""
    orientation: Orientation = "exif"
    """exif: photos are turned upright by their EXIF tag, here and in every later step up to the model. stored: the tag
    is ignored, as in torchvision's ImageFolder and the published ILSVRC results."""
    workers: int = 0
    """Processes; 0 = one per usable CPU."""
    seed: int = 0
    """Seed of the global shuffle."""
    draw: DrawConfig | None = None
    """Draw the images first, into the folders named by train and val (the demo)."""

    def __post_init__(self) -> None:
        require(0 < self.shard_mb < math.inf, "pack.shard_mb", self.shard_mb, "> 0 and finite")
        at_least(self, "pack", 1, "shorter_side", "quality")
        at_least(self, "pack", 0, "workers")
        require(0 <= self.seed < 2**32, "pack.seed", self.seed, "in [0, 2^32)")
        require(self.quality is None or self.quality <= 100, "pack.quality", self.quality, "<= 100")
        if self.val_share is not None:
            require(0 < self.val_share < 1, "pack.val_share", self.val_share, "> 0 and < 1")
            require(self.val is None, "pack.val_share", self.val_share, "left out where val is given")


@dataclass(kw_only=True)
class DataConfig:
    """Configure where the images are, how they are split and how they become tensors."""

    shards: str = "shards"
    """Folder made by ``dist-train pack``, or its URL (s3://, gs://, http(s)://) once it is uploaded."""
    split: str = "imagenet_900_100"
    """A published split by name (configs/splits/NAME.json), or the path of a split file."""
    holdout: Literal["novel", "pseudo-novel"] = "novel"
    """Which classes play the novel classes. ``pseudo-novel`` trains without the base classes that the split
    marks and evaluates on them: the honest way to choose hyper-parameters. In a split by halves they are the
    validation half, and the base stays as it is."""
    train_size: int = 224
    """Side of the training crop in pixels."""
    eval_resize: int = 256
    """Evaluation: shorter side after resizing, in pixels (torchvision's reference)."""
    eval_size: int = 224
    """Evaluation: side of the centre crop, in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: share of the area (Szegedy et al. 2015; torchvision's default)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: aspect ratio, width / height (torchvision's default)."""
    augment: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Operations on the training crops, from DALI's suites: RandAugment (Cubuk et al. 2020) with timm's noise
    on the magnitude, or TrivialAugment (Mueller, Hutter 2021): one operation of any magnitude."""
    augment_ops: int = 2
    """RandAugment: operations per image (its paper and timm)."""
    augment_magnitude: float = 7
    """RandAugment: mean magnitude, 0 to 10 (timm's m7: ResNet strikes back, Wightman et al. 2021)."""
    augment_std: float = 0.5
    """RandAugment: standard deviation of the magnitude (timm's mstd0.5, as above)."""
    ramp_from: int | None = None
    """Progressive resizing: side of the training crop at the start; it grows to train_size. Small
    crops are cheap, and the last epochs see the large ones (FFCV's recipes: 160 to 192)."""
    ramp_epochs: tuple[float, float] = (65, 76)
    """Progressive resizing: first and last epoch of the growth, linear in multiples of 32 (FFCV's, of 88)."""
    block_shards: int = 0
    """Shuffle in blocks of this many shards, drawn anew each epoch, so that a cache smaller than the
    data is enough; 0 = one permutation of all images (docs/reliability.md compares both)."""
    max_bad_fraction: float = 1e-3
    """Training images that cannot be read or decoded are counted, and replaced by the next image of their class. When
    they are more than this share of the images seen so far (at least one epoch's), the run fails."""
    threads: int = 0
    """CPU threads of DALI per rank; 0 = this rank's share of the usable CPUs."""
    prefetch: int = 2
    """Number of batches that are prepared ahead of the one in use."""
    decoder: Literal["auto", "cpu", "mixed"] = "auto"
    """Where JPEGs are decoded: ``mixed`` is nvJPEG on the GPU; ``auto`` takes it where there is a GPU."""

    def __post_init__(self) -> None:
        at_least(self, "data", 1, "train_size", "eval_resize", "eval_size", "prefetch")
        at_least(self, "data", 0, "threads", "block_shards")
        require(bool(self.shards), "data.shards", self.shards, "a folder or a URL")
        require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", self.max_bad_fraction, "in [0, 1]")
        ok = self.eval_size <= self.eval_resize
        require(ok, "data.eval_size", self.eval_size, f"<= data.eval_resize={self.eval_resize}")
        require(self.eval_size <= MAX_SIZE, "data.eval_size", self.eval_size, f"<= {MAX_SIZE}")
        require(self.eval_resize <= MAX_RESIZE, "data.eval_resize", self.eval_resize, f"<= {MAX_RESIZE}")
        low, high = self.scale
        require(0 < low <= high <= 1, "data.scale", self.scale, "two shares, 0 < low <= high <= 1")
        low, high = self.ratio
        require(0 < low <= high, "data.ratio", self.ratio, "two ratios, 0 < low <= high")
        at_least(self, "data", 1, "augment_ops", "ramp_from")
        at_least(self, "data", 0, "augment_std")
        require(0 <= self.augment_magnitude <= 10, "data.augment_magnitude", self.augment_magnitude, "in [0, 10]")
        ok = self.ramp_from is None or self.ramp_from <= self.train_size
        require(ok, "data.ramp_from", self.ramp_from, f"<= data.train_size={self.train_size}")
        begin, end = self.ramp_epochs
        require(0 <= begin < end, "data.ramp_epochs", self.ramp_epochs, "two epochs, 0 <= first < last")

    @property
    def operations(self) -> int:
        """Return how many operations ``augment`` applies to a training image."""
        return {"none": 0, "randaugment": self.augment_ops, "trivialaugment": 1}[self.augment]

    @property
    def preprocessing(self) -> Preprocessing:
        """Return what the images of our own networks go through: torchvision's reference transforms at the configured
        sizes."""
        return Preprocessing(resize=self.eval_resize, size=self.eval_size)


@dataclass(kw_only=True)
class CacheConfig:
    """Configure the cache of a URL's shards on a node's disk; all ranks and runs share it."""

    dir: Path = Path("~/.cache/dist_train")
    """Folder on a local disk of the node; each shard is fetched into it once."""
    gb: float = 200.0
    """Limit in gigabytes (10^9 bytes); the least recently used shards are deleted to make room."""
    retries: int = 5
    """Further attempts to fetch a file, after 1, 2, 4, ... seconds."""
    timeout: float = 60.0
    """Seconds without a byte after which an attempt is given up."""
    downloads: int = 4
    """Shards that a node fetches at the same time."""

    def __post_init__(self) -> None:
        require(self.gb > 0, "cache.gb", self.gb, "> 0")
        require(self.timeout > 0, "cache.timeout", self.timeout, "> 0")
        at_least(self, "cache", 0, "retries")
        at_least(self, "cache", 1, "downloads")
