"""Decoded windows to normalised tensors on the CPU: turn upright, resize, crop, flip, normalise.

This is the reference of preprocessing: what training and evaluation make of an image on the CPU, and what a classifier
makes of a photo, are these functions. Two other implementations are tested against it: DALI's graph (``data.dali``),
which does the same on a GPU or with ``data.augment``, and the module that is exported with a network
(``classifier.photos.Preprocess``).

DALI's resize takes longer on a CPU than its decoding; torch's kernel for bytes takes a third of that
(``tools/bench_loader.py``), and is the one that torchvision uses, to the same pixels.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate
from torch.utils.dlpack import from_dlpack

from dist_train.data.images.orientation import turn
from dist_train.data.loading.augment import centre_anchor, resized_sizes

# ImageNet channel statistics in [0, 1], RGB (torchvision's reference transforms).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Request:
    """B encoded images and what to make of each: V crops.

    Attributes:
        blobs: B encoded images, uint8 [size].
        orientation: int32 [B], how each is turned, see ``data.orientation``.
        anchor, shape: int32 [B, 2], the window to decode in the stored image (top, left; height, width).
        size: int32 [B, 2], height and width of the upright window after resizing (bilinear, antialiased).
        crop: int32 [B * V, 2], top left of the final crops in the resized image.
        flip: int32 [B * V], 1 = mirror left to right.
        side: of the images in pixels, after the crop.
        operations: int32 [B, operations, 3], see ``augment.operations``.
    """

    blobs: list[npt.NDArray[np.uint8]]
    orientation: npt.NDArray[np.int32]
    anchor: npt.NDArray[np.int32]
    shape: npt.NDArray[np.int32]
    size: npt.NDArray[np.int32]
    crop: npt.NDArray[np.int32]
    flip: npt.NDArray[np.int32]
    side: int
    operations: npt.NDArray[np.int32]


def finished(
    decoded: Iterator[tuple[Sequence[Any], Request]], threads: int, locked: bool = False
) -> Generator[torch.Tensor, None, None]:
    """float32 [B * V, 3, side, side] of each request, normalised, in channels_last memory.

    One batch is in the making, on ``threads`` threads, while the one before it is used.

    Args:
        decoded: the decoded windows, B times uint8 [height, width, 3] as dlpack, and their request.
        locked: into page-locked memory, which a GPU can copy by itself (``transfer``).
    """
    buffers = Buffers(locked)

    def make(windows: Sequence[Any], request: Request, out: npt.NDArray[np.float32], share: range) -> None:
        crops = len(request.crop) // len(windows)
        for n in share:
            image = resize(from_dlpack(windows[n]), int(request.orientation[n]), request.size[n].tolist())
            for k in range(n * crops, (n + 1) * crops):
                cut(image, request.crop[k].tolist(), bool(request.flip[k]), out[k])

    def start(windows: Sequence[Any], request: Request) -> Callable[[], torch.Tensor]:
        out = buffers.lend(len(request.crop), (request.side, request.side, 3))
        shares = [range(first, len(windows), threads) for first in range(threads)]
        parts = [pool.submit(make, windows, request, out, share) for share in shares]

        def wait() -> torch.Tensor:
            for part in parts:
                part.result()
            return torch.from_numpy(out).permute(0, 3, 1, 2)

        return wait

    with ThreadPoolExecutor(threads, thread_name_prefix="resize") as pool:
        making: deque[Callable[[], torch.Tensor]] = deque()
        for windows, request in decoded:
            making.append(start(windows, request))
            if len(making) > 1:
                yield making.popleft()()
        while making:
            yield making.popleft()()


def resize(stored: torch.Tensor, orientation: int, size: list[int]) -> npt.NDArray[np.uint8]:
    """An image, or a window of it, upright and resized, bilinear and antialiased.

    Args:
        stored: uint8 [height, width, 3], as decoded.
        size: height and width of the result [height, width, 3], of bytes too.
    """
    if orientation != 1:
        stored = torch.from_numpy(np.ascontiguousarray(turn(stored.numpy(), orientation)))
    resized = interpolate(stored.permute(2, 0, 1)[None], size=size, mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def cut(image: npt.NDArray[np.uint8], corner: list[int], flip: bool, out: npt.NDArray[np.float32]) -> None:
    """Crop an image [height, width, 3] at its corner (top, left) to the size of ``out`` [side, side, 3], mirror it left
    to right, and normalise. By numpy: torch would start threads of its own inside each of a loader's."""
    side = len(out)
    (top, left), (mean, scale) = corner, _statistics(side)
    pixels = image[top : top + side, left : left + side]
    np.subtract(pixels[:, ::-1] if flip else pixels, mean, out=out)
    np.multiply(out, scale, out=out)


def evaluation(image: torch.Tensor, resize_to: int, side: int) -> torch.Tensor:
    """An upright photo as the evaluation sees it: uint8 [3, height, width] -> float32 [3, side, side]. Its shorter side
    becomes ``resize_to`` pixels, and the centre of that is cut out (torchvision's Resize and CenterCrop)."""
    height, width = (np.array([length], np.int64) for length in image.shape[1:])
    size = resized_sizes(height, width, resize_to)
    out = np.empty((side, side, 3), np.float32)
    cut(resize(image.permute(1, 2, 0), 1, size[0].tolist()), centre_anchor(size, side)[0].tolist(), False, out)
    return torch.from_numpy(out).permute(2, 0, 1)


@lru_cache(maxsize=2)  # a batch in the making, and one of the next side
def _statistics(side: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and 1/deviation of the channels, each [side, side, 3]: numpy is slow to repeat so short a row."""
    mean, scale = (
        np.ascontiguousarray(np.broadcast_to(np.asarray(row, np.float32), (side, side, 3)))
        for row in (255 * np.asarray(MEAN), 1 / (255 * np.asarray(STD)))
    )
    return mean, scale


class Buffers:
    """Arrays float32 [B, *shape], each used again once the last tensor over it is gone: the kernel takes
    as long to clear so much fresh memory as the resizing takes. Those of another shape than was asked for
    last are let go. ``locked``: in page-locked memory, of which torch takes the next power of two."""

    def __init__(self, locked: bool = False) -> None:
        self._locked = locked
        self._shape: tuple[int, ...] = ()
        self._free: list[npt.NDArray[np.float32]] = []

    def lend(self, count: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        if shape != self._shape:
            self._shape, self._free = shape, []  # what is lent comes back to the old list, and goes with it
        whole = self._free.pop() if self._free else np.empty((0, *shape), np.float32)
        if len(whole) < count:
            whole = torch.empty((count, *shape), dtype=torch.float32, pin_memory=self._locked).numpy()
        lent = whole[:count]
        weakref.finalize(lent, self._free.append, whole)
        return lent
