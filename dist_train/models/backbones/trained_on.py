"""Which classes a trained network has seen, by the names that timm's tags and data sets have."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

# Words of timm's tags, the data sets that they mean, and the list of ImageNet's classes in timm whose images are in it.
# DINOv2's LVD-142M contains ImageNet-22k (Oquab et al. 2023, table 15), DINOv3's LVD-1689M is mixed with ImageNet-1k
# (Siméoni et al. 2025, section 3.1).
_DATA_SETS = {
    "in1k": ("ImageNet-1k", "imagenet-1k"),
    "in12k": ("ImageNet-12k", "imagenet-12k"),
    "in21k": ("ImageNet-21k", "imagenet-22k"),
    "in22k": ("ImageNet-22k", "imagenet-22k"),
    "inw21k": ("ImageNet-21k of winter 2021", "imagenet-22k"),
    "mae": ("ImageNet-1k without labels", "imagenet-1k"),
    "fcmae": ("ImageNet-1k without labels", "imagenet-1k"),
    "dino": ("ImageNet-1k without labels", "imagenet-1k"),
    "lvd142m": ("LVD-142M, which contains ImageNet-22k", "imagenet-22k"),
    "lvd1689m": ("LVD-1689M and ImageNet-1k", "imagenet-1k"),
    "laion2b": ("LAION-2B", ""),
    "laion400m": ("LAION-400M", ""),
    "openai": ("OpenAI's photos with texts", ""),
    "webli": ("WebLI", ""),
    "datacomp1b": ("DataComp-1B", ""),
    "datacompxl": ("DataComp-XL", ""),
    "dfn2b": ("DFN-2B", ""),
    "dfn5b": ("DFN-5B", ""),
    "yfcc15m": ("YFCC-15M", ""),
    "yfcc100m": ("YFCC-100M", ""),
    "ig1b": ("a billion photos of Instagram", ""),
    "jft": ("JFT-300M", ""),
}

_AND_MORE = ("lvd142m", "lvd1689m")
"""Data sets whose images are of further classes that no list names."""


def classes_of(rows: int) -> tuple[str, ...] | None:
    """Return the wnid of each row of ImageNet's classifiers, of which the number of rows tells which it is (timm)."""
    from timm.data.imagenet_info import infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": rows})
    return _wnids(subset) if subset else None


@dataclass(frozen=True)
class TrainingData:
    """Say what a network was trained on.

    Attributes:
        words: its data sets, in the order of training; "" where they are not known.
        seen: wnids of all of their classes that are known, sorted; None where no class is known.
        complete: whether ``seen`` is all of them. Photos with texts from the web, and unlabelled ones, may be of any
            class.
    """

    words: str = ""
    seen: tuple[str, ...] | None = None
    complete: bool = False


def seen_by_tag(tag: str, classes: tuple[str, ...] | None) -> TrainingData:
    """Return what a network of timm was trained on.

    Args:
        tag: the part of timm's name behind the point, "augreg_in21k_ft_in1k".
        classes: of its classifier's rows, None where they are not known.
    """
    words, seen, complete = [], set(classes or ()), True
    for part in tag.split("_"):
        name, subset = _DATA_SETS.get(part, ("", ""))
        if name:
            words.append(name)
            complete = complete and bool(subset) and part not in _AND_MORE
        if subset:
            # ImageNet-1k too: timm's list of the larger set has one class less.
            seen.update(_wnids(subset), _wnids("imagenet-1k"))
    return TrainingData(", then ".join(words), tuple(sorted(seen)) or None, complete and bool(words))


@functools.cache
def _wnids(subset: str) -> tuple[str, ...]:
    """Return the wnids of one of timm's lists of ImageNet's classes."""
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo(subset)
    return tuple(info.label_names())
