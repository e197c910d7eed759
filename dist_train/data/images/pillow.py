"""Pixels by Pillow: for photos that a classifier is given, and for images that are encoded anew when packing.

Training images are decoded by DALI (``loading.dali``). Both give the same pixels of an image that both decode
(``tests/data/loading/test_one_preprocessing.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dist_train.config import Orientation
from dist_train.data.images import orientation


class Unusable(ValueError):
    """Report pixels that no photo has; the text says which, and what to do."""


def upright(image: Image.Image, rule: Orientation) -> npt.NDArray[np.uint8]:
    """Return the RGB bytes of an opened image [height, width, 3], turned by its orientation under the rule; a view.

    An animation gives its first frame; transparent pixels give the colours that are stored for them.

    Raises:
        Unusable: the pixels are floats, or integers of more than 16 bits.
        Exception: the file is damaged; Pillow raises nearly anything.
    """
    turned, pixels = orientation.of(image, "exif"), _rgb(image)
    if image.format == "TIFF":  # Pillow has turned it while loading it
        return pixels if rule == "exif" else orientation.turn(pixels, orientation.inverse(turned))
    return orientation.turn(pixels, turned) if rule == "exif" else pixels


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep(np.asarray(image))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _deep(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return grey levels of 16 bits as 8 bits; Pillow's own conversion makes every level above 255 white."""
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise Unusable(f"{pixels.dtype} pixels; convert it to 8 bits a channel")
    grey = (pixels.astype(np.int32) + 128) // 257  # to the nearest, as DALI does
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
