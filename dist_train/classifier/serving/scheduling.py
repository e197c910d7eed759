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


class ClientShares:
    """How much each client may have in work at once."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, client: str) -> asyncio.Semaphore:
        """Return the share of a client, to be held for each piece of work; it is forgotten when nothing holds it."""
        return self._of.setdefault(client, asyncio.Semaphore(self._number))


class FairPool:
    """Threads for one kind of work. No client has more waiting for them than there are threads, so that another waits
    for a few at most."""

    def __init__(self, threads: int) -> None:
        self._pool, self._shares = ThreadPoolExecutor(threads), ClientShares(threads)

    async def run(self, client: str, work: Callable[..., Result], *arguments: object) -> Result:
        """``work(*arguments)`` on one of the threads."""
        async with self._shares.of(client):
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


class DecodingPools:
    """One lane to look at photos, one for small ones and one, of a single thread, for large ones."""

    def __init__(self) -> None:
        self.looks, self.small, self._large = FairPool(_THREADS), FairPool(_THREADS), FairPool(1)

    def of(self, pixels: int) -> FairPool:
        """The lane for a photo of so many pixels."""
        return self.small if pixels <= SMALL else self._large


class BatchedNetwork:
    """Images of any number of callers through the network: whatever waits when it is free.

    Args:
        embed: images [B, 3, size, size] -> activations [B, dim].
        size: images in a batch at the most.
    """

    def __init__(self, embed: Callable[[torch.Tensor], torch.Tensor], size: int) -> None:
        self._embed, self._size, self._pool = embed, size, ThreadPoolExecutor(1)
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
            part, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
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
