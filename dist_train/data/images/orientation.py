"""EXIF orientation: read once, when packing, and followed wherever pixels are made.

An orientation is a number from 1 to 8 (EXIF 2.32, tag 0x0112): how the stored pixels are to be turned to stand upright.
It consists of a transposition, a mirroring left to right and a mirroring top to bottom, in this order, or of some of
these three:

    1 none    2 mirrored    3 half a turn     4 flipped
    5 to 8: the same four for an image that is stored lying on its side (6: a phone held upright)

Under the rule ``exif`` an image's width, height and windows are those of the upright image, and the decoder decodes the
part of the stored image that becomes the window. Under the rule ``stored`` every orientation is 1: the tag is ignored,
as torchvision's ImageFolder does, and with it the published ILSVRC results.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from dist_train.config import Orientation

Ints = npt.NDArray[np.int32]
Pixels = TypeVar("Pixels", bound=npt.NDArray[Any])
TAG = 0x0112

_MIRRORED, _FLIPPED = (2, 3, 6, 7), (3, 4, 7, 8)


def of(image: Image.Image, rule: Orientation) -> int:
    """Return the orientation of an opened image, from its EXIF data or, where it has none, its XMP data.

    It is 1 where there is no valid tag, or where the rule ignores it.
    """
    if rule == "stored":
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Corrupt EXIF data": harmless, and many in ImageNet
            value = image.getexif().get(TAG, 1)
    except Exception:  # Pillow raises nearly anything on damaged metadata; the pixels may be sound
        return 1
    return int(value) if value in range(1, 9) else 1


def sizes(image: Image.Image, rule: Orientation) -> tuple[int, int, int]:
    """Return the width and height that an image has under the rule, and its orientation.

    The image must not be loaded yet: Pillow turns a TIFF itself when it loads it, and does not know its upright size
    before.
    """
    width, height = image.size
    if image.format == "TIFF":
        width, height = upright_size(width, height, of(image, "exif"))
    turned = of(image, rule)
    return *upright_size(width, height, turned), turned


def transposed(orientation: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Tell which images [B] lie on their side."""
    return orientation >= 5


def mirrored(orientation: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Tell which images [B] are mirrored left to right, after the transposition."""
    return np.isin(orientation, _MIRRORED)


def flipped(orientation: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Tell which images [B] are mirrored top to bottom, after the transposition."""
    return np.isin(orientation, _FLIPPED)


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Return width and height of the upright image, from those of the stored image."""
    return (height, width) if orientation >= 5 else (width, height)


def stored_windows(orientation: Ints, anchor: Ints, shape: Ints, size: Ints) -> tuple[Ints, Ints]:
    """Return the part of each stored image that, turned, is a window of the upright image.

    Args:
        orientation: int32 [B].
        anchor, shape: int32 [B, 2], top and left, height and width of the windows in the upright images.
        size: int32 [B, 2], height and width of the upright images.

    Returns:
        anchor, shape: int32 [B, 2], in the stored images.
    """
    far = size - anchor - shape  # the window's distance to the bottom and the right
    undone = np.stack([flipped(orientation), mirrored(orientation)], axis=1)
    anchor = np.where(undone, far, anchor)
    lying = transposed(orientation)[:, None]
    return np.where(lying, anchor[:, ::-1], anchor), np.where(lying, shape[:, ::-1], shape)


def inverse(orientation: int) -> int:
    """Return the orientation that undoes another."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def turn(pixels: Pixels, orientation: int) -> Pixels:
    """Return stored pixels [height, width, ...] upright: a view, without a copy."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in _MIRRORED:
        pixels = pixels[:, ::-1]  # type: ignore[assignment]
    if orientation in _FLIPPED:
        pixels = pixels[::-1]  # type: ignore[assignment]
    return pixels
