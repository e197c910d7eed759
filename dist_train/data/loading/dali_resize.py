"""DALI's resize, and how it is made to resize as Pillow does.

DALI's own resize differs from that of Pillow, torchvision and timm in two ways. Beyond the edge of an image it repeats
the outermost pixels, where they leave them out and share the weight among the others: the outermost pixels come out up
to 20 levels of 255 away. And it rounds once, where they round, and clip to bytes, after each of two passes: beside
saturated pixels, where the bicubic kernel overshoots, that is 20 levels as well.

Where the edges are cut off and the kernel is bilinear, as in the evaluation of our own networks, nothing of this is
seen, and DALI's resize is used as it is. Else each pass is a resize of its own, of an image in a margin of zeros. Near
the edge it comes out too dark by the share of the kernel that lies in the margin, and is divided by the other share.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_train.config.backbone import Interpolation, Preprocessing
from dist_train.data.images import orientation
from dist_train.data.loading.preprocessing import Request

_SUPPORT = {"bilinear": 1, "bicubic": 2}  # how far a kernel reaches to each side, in pixels of the smaller image


def as_pillow(preprocessing: Preprocessing) -> bool:
    """Return whether DALI's own resize would differ from that of Pillow by more than rounding."""
    return preprocessing.interpolation == "bicubic" or preprocessing.resize - preprocessing.size < 2


def input_names(preprocessing: Preprocessing) -> list[str]:
    """Return the names of the graph's inputs for the resize, as ``graph_inputs`` fills them."""
    if not as_pillow(preprocessing):
        return ["size"]
    of_passes = [f"{name}_{part}" for name in ("across", "down") for part in ("start", "end", "share")]
    return ["size", "margin", "padded", "across", *of_passes]


def graph_inputs(request: Request) -> dict[str, Any]:
    """Return the graph's inputs for the resize of a batch: an array, or a list of arrays, for each name.

    ``size`` is height and width of the results. For Pillow's way there are also, for each image, ``margin`` and
    ``padded``, the window that cuts out the image with its margin, and ``across``, the size after the first pass; and
    for each pass the window of that image that it resizes, ``start`` to ``end``, and ``share``, see ``_share_inside``.
    """
    size = request.size.astype(np.float32)
    if not as_pillow(request.preprocessing):
        return {"size": size}
    kernel = request.preprocessing.interpolation
    lying = orientation.transposed(request.orientation)
    upright = np.where(lying[:, None], request.shape[:, ::-1], request.shape)
    margin = _SUPPORT[kernel] * np.maximum(1, -(-upright // request.size)) + 1
    padded = upright + 2 * margin
    across = np.stack([padded[:, 0], request.size[:, 1]], axis=1).astype(np.float32)
    none = np.zeros(len(size), np.float32)
    sides = np.stack([upright, request.size], axis=2).tolist()  # of each image: height and width, before and after
    return {
        "size": size,
        "margin": -margin.astype(np.int32),
        "padded": padded.astype(np.int32),
        "across": across,
        "across_start": np.stack([none, margin[:, 1]], axis=1).astype(np.float32),
        "across_end": np.stack([padded[:, 0], margin[:, 1] + upright[:, 1]], axis=1).astype(np.float32),
        "across_share": [_share_inside(*width, kernel).reshape(1, -1, 1) for _, width in sides],
        "down_start": np.stack([margin[:, 0], none], axis=1).astype(np.float32),
        "down_end": np.stack([margin[:, 0] + upright[:, 0], across[:, 1]], axis=1).astype(np.float32),
        "down_share": [_share_inside(*height, kernel).reshape(-1, 1, 1) for height, _ in sides],
    }


@lru_cache(maxsize=4096)  # most photos have one of a few sizes
def _share_inside(length: int, resized: int, kernel: Interpolation) -> npt.NDArray[np.float32]:
    """Return for each pixel of a pass that makes ``resized`` pixels of ``length`` the share of its kernel that lies in
    the image: float32 [resized]."""
    scale = length / resized
    widened = max(scale, 1)  # antialiased: a kernel covers as many pixels as become one
    centre = (np.arange(resized)[:, None] + 0.5) * scale
    reach = int(np.ceil(_SUPPORT[kernel] * widened)) + 1
    pixels = np.floor(centre) + np.arange(-reach, reach + 1)
    weights = _weights(np.abs(pixels + 0.5 - centre) / widened, kernel)
    inside = (pixels >= 0) & (pixels < length)
    share: npt.NDArray[np.float32] = ((weights * inside).sum(1) / weights.sum(1)).astype(np.float32)
    return share


def _weights(x: npt.NDArray[np.float64], kernel: Interpolation) -> npt.NDArray[np.float64]:
    """Return the kernel at distances ``x``: the triangle, or the cubic with a = -0.5 (Keys 1981; Pillow)."""
    if kernel == "bilinear":
        return np.clip(1 - x, 0, None)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resized(fn: Any, types: Any, images: Any, inputs: dict[str, Any], preprocessing: Preprocessing) -> Any:
    """Return images uint8 [height, width, 3] of a graph resized, by the inputs that ``graph_inputs`` has filled."""
    kernel = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}[preprocessing.interpolation]
    options = {"interp_type": kernel, "antialias": True}
    if not as_pillow(preprocessing):
        return fn.resize(images, size=inputs["size"], **options)
    window = {"start": inputs["margin"], "shape": inputs["padded"], "axis_names": "HW"}
    images = fn.slice(images, **window, out_of_bounds_policy="pad", fill_values=0)
    for name, size in (("across", inputs["across"]), ("down", inputs["size"])):  # in Pillow's order
        place = {"roi_start": inputs[f"{name}_start"], "roi_end": inputs[f"{name}_end"], "size": size}
        share = inputs[f"{name}_share"]
        dark = fn.resize(images, **place, dtype=types.FLOAT, **options)
        images = fn.cast(dark / (share.gpu() if dark.device == "gpu" else share), dtype=types.UINT8)
    return images
