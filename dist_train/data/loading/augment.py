"""Crop windows, flips and augmentations: a pure function of (seed, epoch, sample id) and the image's size.

Everything is drawn before decoding, windows from the sizes in the index, so that only the window is decoded.
A resumed run, or a run on another number of ranks, sees the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dist_train.config import DataConfig
from dist_train.config.backbone import Preprocessing

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_ATTEMPTS = 10  # as many as torchvision's RandomResizedCrop makes

# The operations of DALI's suites for RandAugment and for TrivialAugment, by DALI's names. A draw is a
# place in this list, so it keeps its meaning under a DALI that lists them in another order.
OPERATIONS = (
    "translate_x", "translate_y", "shear_x", "shear_y", "rotate", "brightness", "contrast", "color",
    "sharpness", "posterize", "solarize", "equalize", "auto_contrast", "identity",
)  # fmt: skip
BINS = 31  # steps from no effect to the strongest (TrivialAugment's paper, and DALI's default)


@dataclass(frozen=True)
class Windows:
    """Hold the window and the flip of each image of a batch, in pixels of the upright image.

    Attributes:
        anchor: int32 [B, 2], top and left.
        shape: int32 [B, 2], height and width.
        flip: int32 [B], 1 = mirror left to right.
    """

    anchor: npt.NDArray[np.int32]
    shape: npt.NDArray[np.int32]
    flip: npt.NDArray[np.int32]


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply SplitMix64's finaliser (Steele, Lea, Flood 2014). One call serves a whole batch, where a
    generator object per sample would cost more than the drawing."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(seed: int, epochs: Ints, ids: Ints, count: int, stream: int = 0) -> Floats:
    """Return ``count`` numbers in [0, 1) for each (epoch, id): float64 [B, count]. Each ``stream`` has its own."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = _mix(np.full(len(ids), seed, np.uint64) + golden)
        key = _mix(key ^ (epochs.astype(np.uint64) + np.uint64(1)) * golden)
        key = _mix(key ^ (ids.astype(np.uint64) + np.uint64(1)) * golden)
        steps = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)) * golden
        bits = _mix(key[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_resized_crop(
    seed: int,
    epochs: Ints,
    ids: Ints,
    heights: Ints,
    widths: Ints,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Windows:
    """Draw windows with the distribution of torchvision's ``RandomResizedCrop``, and a fair flip.

    Args:
        epochs, ids, heights, widths: int64 [B].
        scale: share of the area, uniform.
        ratio: width / height, log-uniform.
    """
    draws = uniforms(seed, epochs, ids, 4 * _ATTEMPTS + 1)
    area, aspect, top, left = (draws[:, k : 4 * _ATTEMPTS : 4] for k in range(4))  # each [B, attempts]
    heights, widths = heights[:, None], widths[:, None]
    target = heights * widths * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + (high - low) * aspect)
    w = np.rint(np.sqrt(target * aspect)).astype(np.int64)
    h = np.rint(np.sqrt(target / aspect)).astype(np.int64)
    fits = (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
    first = fits.argmax(axis=1)
    row = np.arange(len(ids))
    h, w = h[row, first], w[row, first]
    y = np.floor(top[row, first] * (heights[:, 0] - h + 1)).astype(np.int64)
    x = np.floor(left[row, first] * (widths[:, 0] - w + 1)).astype(np.int64)

    # Where no attempt fits (a very long image), take the largest central window of an allowed ratio.
    none = ~fits.any(axis=1)
    if none.any():
        full_h, full_w = heights[none, 0], widths[none, 0]
        h[none] = np.minimum(full_h, np.rint(full_w / ratio[0]).astype(np.int64)).clip(1)
        w[none] = np.minimum(full_w, np.rint(full_h * ratio[1]).astype(np.int64)).clip(1)
        y[none], x[none] = (full_h - h[none]) // 2, (full_w - w[none]) // 2
    anchor = np.stack([y, x], axis=1).astype(np.int32)
    shape = np.stack([h, w], axis=1).astype(np.int32)
    return Windows(anchor, shape, (draws[:, -1] < 0.5).astype(np.int32))


def operations(data: DataConfig, seed: int, epochs: Ints, ids: Ints) -> npt.NDArray[np.int32]:
    """Draw the operations of ``data.augment`` for each image, in order: int32 [B, data.operations, 3].

    The three numbers are a place in ``OPERATIONS``, all equally likely; the magnitude as a bin in [0, BINS); and 1 if
    its sign is turned, for the operations that have a sign. TrivialAugment's bin is uniform. RandAugment's is
    timm's ``mstd``: normal about the magnitude, clipped to the scale, 0 to 10.

    timm also skips each operation with probability 1/2 and knows two more (invert, solarize_add). As in
    DALI's suite and the paper, no operation is skipped here, and one of them is the identity.
    """
    draws = uniforms(seed, epochs, ids, 4 * data.operations, stream=1).reshape(len(ids), data.operations, 4)
    chosen, sign, first, second = (draws[..., k] for k in range(4))
    if data.augment == "trivialaugment":
        level = np.floor(first * BINS)
    else:
        normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)  # Box, Muller 1958
        level = np.rint(np.clip(data.augment_magnitude + data.augment_std * normal, 0, 10) / 10 * (BINS - 1))
    return np.stack([np.floor(chosen * len(OPERATIONS)), level, sign < 0.5], axis=-1).astype(np.int32)


def resized_sizes(heights: Ints, widths: Ints, preprocessing: Preprocessing) -> npt.NDArray[np.int32]:
    """Return the sizes after torchvision's ``Resize(resize)``, or ``Resize((resize, resize))`` where the image is
    squashed: int32 [B, 2], height and width.

    torchvision rounds the longer side down to a whole pixel.
    """
    resize, short = preprocessing.resize, np.minimum(heights, widths)
    h, w = (
        np.full_like(short, resize)
        if preprocessing.squash
        else np.where(lengths == short, resize, resize * lengths // short)
        for lengths in (heights, widths)
    )
    return np.stack([h, w], axis=1).astype(np.int32)


def centre_anchor(sizes: npt.NDArray[np.int32], crop: int) -> npt.NDArray[np.int32]:
    """Return the top left of torchvision's ``CenterCrop(crop)``: int32 [B, 2] (Python's round: half to even)."""
    return np.rint((sizes - crop) / 2.0).astype(np.int32)


def ten_crops(sizes: npt.NDArray[np.int32], crop: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the crops of torchvision's ``TenCrop(crop)``, in its order: top left int32 [B * 10, 2], flip [B * 10].

    torchvision crops the mirrored image, whose centre may lie one pixel beside the centre's mirror image.
    """
    free = (sizes - crop)[:, None]
    corners = free * np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32)
    five = np.concatenate([corners, centre_anchor(sizes, crop)[:, None]], axis=1)
    mirrored = np.stack([five[..., 0], free[..., 1] - five[..., 1]], axis=-1)
    flip = np.tile(np.repeat(np.array([0, 1], np.int32), 5), len(sizes))
    return np.concatenate([five, mirrored], axis=1).reshape(-1, 2), flip
