"""Photos of many clients to activations: decoded side by side, small photos never behind large ones, each client with
a fair share, and through the network in batches.

What is decoded at once is bounded: one large photo, and as many small ones as there are threads for them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

import torch

Result = TypeVar("Result")

SMALL = 16_000_000
"""Pixels of a photo that counts as small; a phone's has 12 million. Decoding one takes a tenth of a second."""

_THREADS = max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
_BATCH = 32


class Lane:
    """Threads for one kind of work. No client has more waiting for them than there are threads, so that another waits
    for a few at most."""

    def __init__(self, threads: int) -> None:
        self._pool, self._threads = ThreadPoolExecutor(threads), threads
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, client: str, work: Callable[..., Result], *arguments: object) -> Result:
        """``work(*arguments)`` on one of the threads."""
        share = self._shares.setdefault(client, asyncio.Semaphore(self._threads))
        async with share:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


class Lanes:
    """One lane for small photos and one, of a single thread, for large ones."""

    def __init__(self) -> None:
        self.small, self._large = Lane(_THREADS), Lane(1)

    def of(self, pixels: int) -> Lane:
        """The lane for a photo of so many pixels."""
        return self.small if pixels <= SMALL else self._large


class Batches:
    """Images of any number of callers through the network: whatever waits when it is free, at most 32.

    Args:
        embed: images [B, 3, size, size] -> activations [B, dim].
    """

    def __init__(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._embed, self._pool = embed, ThreadPoolExecutor(1)
        self._waiting: list[tuple[torch.Tensor, asyncio.Future[torch.Tensor]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def activation(self, image: torch.Tensor) -> torch.Tensor:
        """Of an image [1, 3, size, size], its activation [1, dim]."""
        activation: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, activation))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await activation

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            part, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            images = torch.cat([image for image, _ in part])
            try:
                rows = await loop.run_in_executor(self._pool, self._embed, images)
                for (_, activation), row in zip(part, rows, strict=True):
                    if not activation.done():  # else its client has left
                        activation.set_result(row[None])
            except Exception as error:
                for _, activation in part:
                    if not activation.done():
                        activation.set_exception(error)
        self._worker = None
