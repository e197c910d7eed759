"""Decoded windows to normalised tensors on the CPU: resize, crop, flip, normalise.

On a GPU, or with ``data.augment``, DALI does this in its graph. On the CPU its resize takes longer than
its decoding; torch's kernel for bytes takes a third of that (``tools/bench_loader.py``), and is the one
that torchvision uses, to the same pixels.
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

# ImageNet channel statistics in [0, 1], RGB (torchvision's reference transforms).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Request:
    """B encoded images and what to make of each: V crops.

    Attributes:
        blobs: B encoded images, uint8 [size].
        anchor, shape: int32 [B, 2], the window to decode (top, left; height, width).
        size: int32 [B, 2], height and width after resizing (bilinear, antialiased).
        crop: int32 [B * V, 2], top left of the final crops in the resized image.
        flip: int32 [B * V], 1 = mirror left to right.
        side: of the images in pixels, after the crop.
        operations: int32 [B, operations, 3], see ``augment.operations``.
    """

    blobs: list[npt.NDArray[np.uint8]]
    anchor: npt.NDArray[np.int32]
    shape: npt.NDArray[np.int32]
    size: npt.NDArray[np.int32]
    crop: npt.NDArray[np.int32]
    flip: npt.NDArray[np.int32]
    side: int
    operations: npt.NDArray[np.int32]


def finished(decoded: Iterator[tuple[Sequence[Any], Request]], threads: int) -> Generator[torch.Tensor, None, None]:
    """float32 [B * V, 3, side, side] of each request, normalised, in channels_last memory.

    One batch is in the making, on ``threads`` threads, while the one before it is used.

    Args:
        decoded: the decoded windows, B times uint8 [height, width, 3] as dlpack, and their request.
    """
    buffers = Buffers()

    def make(windows: Sequence[Any], request: Request, out: npt.NDArray[np.float32], share: range) -> None:
        side, crops = request.side, len(request.crop) // len(windows)
        mean, scale = _statistics(side)
        for n in share:
            image = from_dlpack(windows[n]).permute(2, 0, 1)[None]
            image = interpolate(image, size=request.size[n].tolist(), mode="bilinear", antialias=True)
            # numpy from here: torch would start threads of its own inside each of ours.
            resized = image[0].permute(1, 2, 0).numpy()
            for k in range(n * crops, (n + 1) * crops):
                top, left = request.crop[k]
                pixels = resized[top : top + side, left : left + side]
                np.subtract(pixels[:, ::-1] if request.flip[k] else pixels, mean, out=out[k])
                np.multiply(out[k], scale, out=out[k])

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
    last are let go."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._free: list[npt.NDArray[np.float32]] = []

    def lend(self, count: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        if shape != self._shape:
            self._shape, self._free = shape, []  # what is lent comes back to the old list, and goes with it
        whole = self._free.pop() if self._free else np.empty((0, *shape), np.float32)
        if len(whole) < count:
            whole = np.empty((count, *shape), np.float32)
        lent = whole[:count]
        weakref.finalize(lent, self._free.append, whole)
        return lent
