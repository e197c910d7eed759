"""Decoded windows to normalised tensors on the CPU: turn upright, resize, crop, flip, normalise.

This is the reference of preprocessing: training and evaluation on the CPU, and a classifier for its photos, use these
functions. Two other implementations are tested against it: DALI's graph (``loading.dali``), which does the same on a
GPU or with ``data.augment``, and the module that is exported with a network (``classifier.photos.Preprocess``).

DALI's resize takes longer on a CPU than its decoding. torch's kernel for bytes takes a third of that time
(``tools/bench_loader.py``); torchvision uses the same kernel, so the pixels are the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate
from torch.utils.dlpack import from_dlpack

from dist_train.config.backbone import Interpolation, Preprocessing
from dist_train.data.images.orientation import turn
from dist_train.data.loading.augment import centre_anchor, resized_sizes

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Request:
    """Hold B encoded images and what to make of each: V crops.

    Attributes:
        blobs: B encoded images, uint8 [size].
        orientation: int32 [B], how each image is turned, see ``images.orientation``.
        anchor, shape: int32 [B, 2], the window to decode in the stored image (top, left; height, width).
        size: int32 [B, 2], height and width of the upright window after resizing.
        crop: int32 [B * V, 2], top left of the final crops in the resized image.
        flip: int32 [B * V], 1 = mirror left to right.
        side: side of the images after the crop, in pixels.
        operations: int32 [B, operations, 3], see ``augment.operations``.
        preprocessing: what the network takes: interpolation and statistics.
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
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Finishing:
    """Hold images float32 [B * V, 3, side, side] in the making, in channels_last memory, and the work on them."""

    images: torch.Tensor
    work: tuple[Future[None], ...] = ()

    def wait(self) -> torch.Tensor:
        """Return the images, once they are finished."""
        for part in self.work:
            part.result()
        return self.images


class Finisher:
    """Make normalised images of decoded windows, on threads of its own."""

    def __init__(self, threads: int, locked: bool = False) -> None:
        """Start ``threads`` threads. ``locked``: write into page-locked memory, which a GPU can copy by itself
        (``transfer``)."""
        self._threads, self._buffers = threads, Buffers(locked)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="resize")

    def start(self, windows: Sequence[Any], request: Request) -> Finishing:
        """Start to finish a batch.

        Args:
            windows: the decoded windows, B times uint8 [height, width, 3] as dlpack.
        """
        out = self._buffers.lend(len(request.crop), (request.side, request.side, 3))
        shares = (range(first, len(windows), self._threads) for first in range(self._threads))
        work = tuple(self._pool.submit(_finish, windows, request, out, share) for share in shares)
        return Finishing(torch.from_numpy(out).permute(0, 3, 1, 2), work)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _finish(windows: Sequence[Any], request: Request, out: npt.NDArray[np.float32], share: range) -> None:
    """Finish a share of a batch's images into ``out`` [B * V, side, side, 3]."""
    crops, how = len(request.crop) // len(windows), request.preprocessing
    for n in share:
        window, size = from_dlpack(windows[n]), request.size[n].tolist()
        image = resize(window, int(request.orientation[n]), size, how.interpolation)
        for k in range(n * crops, (n + 1) * crops):
            cut(image, request.crop[k].tolist(), bool(request.flip[k]), how, out[k])


def resize(
    stored: torch.Tensor, orientation: int, size: list[int], interpolation: Interpolation
) -> npt.NDArray[np.uint8]:
    """Turn an image, or a window of it, upright and resize it, antialiased. The bicubic kernel has a = -0.5, and each
    pass rounds to bytes, as in Pillow.

    Args:
        stored: uint8 [height, width, 3], as decoded.
        size: height and width of the result, uint8 [height, width, 3].
    """
    if orientation != 1:
        stored = torch.from_numpy(np.ascontiguousarray(turn(stored.numpy(), orientation)))
    resized = interpolate(stored.permute(2, 0, 1)[None], size=size, mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def cut(
    image: npt.NDArray[np.uint8],
    corner: list[int],
    flip: bool,
    preprocessing: Preprocessing,
    out: npt.NDArray[np.float32],
) -> None:
    """Crop an image [height, width, 3] at its corner (top, left) to the size of ``out`` [side, side, 3], mirror it left
    to right, and normalise it. NumPy does it: torch would start threads of its own inside each thread of a loader."""
    side = len(out)
    (top, left), (mean, scale) = corner, _statistics(side, preprocessing.mean, preprocessing.std)
    pixels = image[top : top + side, left : left + side]
    np.subtract(pixels[:, ::-1] if flip else pixels, mean, out=out)
    np.multiply(out, scale, out=out)


def evaluation(images: Sequence[torch.Tensor], preprocessing: Preprocessing) -> torch.Tensor:
    """Return upright photos as the evaluation sees them: each uint8 [3, height, width], of any size -> float32
    [B, 3, size, size], in channels_last memory."""
    side = preprocessing.size
    out = np.empty((len(images), side, side, 3), np.float32)
    for image, finished in zip(images, out, strict=True):
        height, width = (np.array([length], np.int64) for length in image.shape[1:])
        resized = resized_sizes(height, width, preprocessing)
        pixels = resize(image.permute(1, 2, 0), 1, resized[0].tolist(), preprocessing.interpolation)
        cut(pixels, centre_anchor(resized, side)[0].tolist(), False, preprocessing, finished)
    return torch.from_numpy(out).permute(0, 3, 1, 2)


@lru_cache(maxsize=2)  # for the batch in the making, and for a batch whose images have the next size
def _statistics(side: int, mean_row: Channels, std_row: Channels) -> tuple[npt.NDArray[np.float32], ...]:
    """Return mean and 1/deviation of the channels, each [side, side, 3]: numpy is slow to repeat so short a row."""
    mean, scale = (
        np.ascontiguousarray(np.broadcast_to(np.asarray(row, np.float32), (side, side, 3)))
        for row in (255 * np.asarray(mean_row), 1 / (255 * np.asarray(std_row)))
    )
    return mean, scale


class Buffers:
    """Lend arrays float32 [B, *shape], each again once the last tensor over it is gone.

    To clear so much fresh memory, the kernel would take as long as the resizing takes. Arrays of another shape than the
    last one asked for are let go.
    """

    def __init__(self, locked: bool = False) -> None:
        """Start without memory. ``locked``: lend page-locked memory, of which torch takes the next power of two."""
        self._locked = locked
        self._shape: tuple[int, ...] = ()
        self._free: list[npt.NDArray[np.float32]] = []

    def lend(self, count: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return an array float32 [count, *shape], to be written to."""
        if shape != self._shape:
            self._shape, self._free = shape, []  # arrays on loan come back to the old list, and go with it
        whole = self._free.pop() if self._free else np.empty((0, *shape), np.float32)
        if len(whole) < count:
            whole = torch.empty((count, *shape), dtype=torch.float32, pin_memory=self._locked).numpy()
        lent = whole[:count]
        weakref.finalize(lent, self._free.append, whole)
        return lent
