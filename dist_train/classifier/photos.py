"""From photos of any kind to the input of the network: decoding by Pillow, then the resize and crop of the evaluation.

Training and evaluation decode with DALI (data/loading/dali.py), from shards and many images at a time. A classifier
gets a few photos of any format, as files, bytes, arrays or tensors. Here they become the same pixels by the same
functions (data/loading/preprocessing.py), turned upright by the rule that the images of the model's run were packed by.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from dist_train.classifier.photo_files import check_size, decoded
from dist_train.config import Orientation
from dist_train.config.backbone import Preprocessing
from dist_train.data.images.photos import MAX_PIXELS
from dist_train.data.loading.preprocessing import evaluation
from dist_train.errors import UserError

Photo: TypeAlias = str | Path | bytes | Image.Image | npt.NDArray[Any] | torch.Tensor
"""A file, its bytes, a PIL image, or pixels: uint8, or floats in [0, 1]. An array is [height, width, 3] or
[height, width]; a tensor is [3, height, width] or [1, height, width]."""


def load(photo: Photo, name: str = "image", max_pixels: int = MAX_PIXELS, rule: Orientation = "exif") -> torch.Tensor:
    """Return the pixels of a photo: uint8 [3, height, width], RGB. Of an animation, the first frame; under
    transparency, the colours that lie below it.

    Args:
        photo: see ``Photo``.
        name: how errors call a photo that is not a file.
        max_pixels: the limit of height x width.
        rule: whether the photo's orientation tag is obeyed (``Preprocess.orientation`` of the model that gets it).

    Raises:
        UserError: the photo cannot be decoded, or is larger than ``max_pixels``.
    """
    if isinstance(photo, torch.Tensor):
        return _checked_pixels(photo, photo.detach().cpu(), name, max_pixels)
    if isinstance(photo, np.ndarray):
        return _checked_pixels(photo, _tensor_of(photo, name), name, max_pixels)
    if isinstance(photo, (Image.Image, bytes, str, Path)):
        return torch.from_numpy(decoded(photo, name, max_pixels, rule)).permute(2, 0, 1)
    raise UserError(f"{name}: {type(photo).__name__} is no photo; give a path, bytes, PIL image, array or tensor")


class Preprocess(nn.Module):
    """Map pixels to the input of the network as the evaluation does: resize, centre crop, normalise.

    ``batch`` is the evaluation itself, whose resize rounds to bytes. ``forward`` is for exports: it computes in floats,
    and rounds where the evaluation does. A few of a thousand pixels lie so near the middle between two bytes that it,
    or another runtime, takes the other of them.

    Attributes:
        spec: what the network takes.
        orientation: the rule by which photos are turned upright before that.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: Preprocessing, orientation: Orientation = "exif") -> None:
        super().__init__()
        self.spec, self.orientation = spec, orientation
        self.register_buffer("mean", 255 * torch.tensor(spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(spec.std)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the input float32 [B, 3, size, size] for images uint8 [B, 3, height, width], all of the same size."""
        spec, (rows, columns) = self.spec, images.shape[-2:]
        short: Any = torch.sym_min(rows, columns)
        height, width = (spec.resize if spec.squash else spec.resize * side // short for side in (rows, columns))
        pixels = images.float()
        for size in [(rows, width), (height, width)]:  # both passes end in bytes; the bicubic kernel overshoots them
            pixels = interpolate(pixels, size=size, mode=spec.interpolation, antialias=True).clamp(0, 255)
            pixels = (pixels + 0.5).floor()
        top, left = _centre(height - spec.size), _centre(width - spec.size)
        crop = pixels[..., top : top + spec.size, left : left + spec.size]
        crop = crop.reshape(images.shape[0], 3, spec.size, spec.size)  # an export does not know the size of the slice
        return (crop - self.mean) / self.std

    def batch(self, pixels: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the input float32 [B, 3, size, size] for photos of any sizes, each uint8 [3, height, width].

        They are resized as bytes on the CPU that decoded them, so a large photo takes no more memory than its pixels.
        """
        return evaluation([image.cpu() for image in pixels], self.spec).to(self.mean.device)


def _centre(free: int) -> int:
    """Return half of the free pixels, rounded to even as by ``centre_anchor``, in arithmetic that exports can trace."""
    half = free // 2
    return half + (free % 2) * (half % 2)


def _tensor_of(photo: npt.NDArray[Any], name: str) -> torch.Tensor:
    """Return an array [height, width, 3] or [height, width] as a tensor [3 or 1, height, width]."""
    try:
        tensor = torch.from_numpy(np.array(photo, photo.dtype.newbyteorder("=")))
    except TypeError:
        raise UserError(f"{name}: an array of {photo.dtype}; give uint8, or floats in [0, 1]") from None
    return tensor.movedim(-1, 0) if tensor.ndim > 2 else tensor[None]


def _checked_pixels(photo: Any, image: torch.Tensor, name: str, max_pixels: int) -> torch.Tensor:
    """Return pixels as uint8 [3, height, width].

    Args:
        photo: what the user gave, whose shape errors name.
        image: the same as a tensor.
        name: how errors call it.
        max_pixels: the limit of height x width.

    Raises:
        UserError: the shape, the type or the values are not those of an image, or it is too large.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        shape = "[height, width, 3] or [height, width]" if isinstance(photo, np.ndarray) else "[3 or 1, height, width]"
        raise UserError(f"{name}: shape {list(photo.shape)}; give {shape}")
    check_size(image.shape[2], image.shape[1], name, max_pixels)
    if image.is_floating_point():
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise UserError(f"{name}: floats outside [0, 1]; give these, not normalised, or uint8")
        image = (255 * image.float()).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise UserError(f"{name}: {image.dtype}; give uint8, or floats in [0, 1]")
    return image.expand(3, -1, -1)
