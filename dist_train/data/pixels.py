"""Decoded windows to normalised tensors on the CPU: resize, crop, flip, normalise.

With ``decoder="mixed"`` DALI does this on the GPU, in its graph. On the CPU its resize takes longer
than its decoding; torch's kernel for bytes takes a third of that (``tools/bench_loader.py``), and is
the one that torchvision uses, to the same pixels.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

Ints = npt.NDArray[np.int32]

# ImageNet channel statistics in [0, 1], RGB (torchvision's reference transforms).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Batch:
    """A batch in the making."""

    images: torch.Tensor
    parts: list[Future[None]]

    def wait(self) -> torch.Tensor:
        """float32 [B, 3, side, side], normalised, in channels_last memory."""
        for part in self.parts:
            part.result()
        return self.images


class Finisher:
    """Makes batches on ``threads`` threads.

    numpy and not torch computes the last steps: torch would start its own threads inside each of ours.
    """

    def __init__(self, side: int, threads: int) -> None:
        self._side, self._threads = side, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="resize")
        self._mean, self._scale = (
            np.ascontiguousarray(np.broadcast_to(np.asarray(row, np.float32), (side, side, 3)))
            for row in (255 * np.asarray(MEAN), 1 / (255 * np.asarray(STD)))
        )
        self._free: list[npt.NDArray[np.float32]] = []

    def close(self) -> None:
        self._pool.shutdown()

    def start(self, windows: Sequence[Any], size: Ints, crop: Ints, flip: Ints) -> Batch:
        """Begin one batch.

        Args:
            windows: B images, uint8 [height, width, 3], as dlpack.
            size: int32 [B, 2], height and width after resizing (bilinear, antialiased).
            crop: int32 [B, 2], top left of the final crop in the resized image.
            flip: int32 [B], 1 = mirror left to right.
        """
        out = self._buffer(len(windows))

        def make(part: range) -> None:
            for n in part:
                image = torch.from_dlpack(windows[n]).permute(2, 0, 1)[None]
                image = interpolate(image, size=size[n].tolist(), mode="bilinear", antialias=True)
                (top, left), side = crop[n], self._side
                pixels = image[0].permute(1, 2, 0).numpy()[top : top + side, left : left + side]
                np.subtract(pixels[:, ::-1] if flip[n] else pixels, self._mean, out=out[n])
                np.multiply(out[n], self._scale, out=out[n])

        shares = [range(first, len(windows), self._threads) for first in range(self._threads)]
        return Batch(torch.from_numpy(out).permute(0, 3, 1, 2), [self._pool.submit(make, share) for share in shares])

    def _buffer(self, count: int) -> npt.NDArray[np.float32]:
        """float32 [count, side, side, 3], used again when the last tensor over it is gone: the kernel takes
        as long to clear so much fresh memory as the resizing takes."""
        side = self._side
        base = self._free.pop() if self._free else np.empty((0, side, side, 3), np.float32)
        if len(base) < count:
            base = np.empty((count, side, side, 3), np.float32)
        lent = base[:count]
        weakref.finalize(lent, self._free.append, base)
        return lent
