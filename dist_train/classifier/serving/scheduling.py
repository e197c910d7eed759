"""How the photos of many clients share the decoding threads and the network.

Photos are decoded side by side, small photos never behind large ones, each client has a fair share, and the network
takes its images in batches. The memory for decoding is bounded: there is a single large photo at a time, and as many
small ones as there are threads for them.
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
"""Pixels up to which a photo counts as small; a phone's has 12 million. Decoding it takes a tenth of a second."""

_THREADS = max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


class ClientShares:
    """A limit on how many pieces of work each client may have in progress at once.

    Args:
        limit: pieces of work of a single client.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._semaphores: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, client: str) -> asyncio.Semaphore:
        """Return the share of a client, to be held for each piece of work; it is forgotten when nothing holds it."""
        return self._semaphores.setdefault(client, asyncio.Semaphore(self._limit))


class FairPool:
    """Threads on which no client has more pieces of work than there are threads, so that another client's work waits
    for a few pieces at most."""

    def __init__(self, threads: int) -> None:
        self._pool, self._shares = ThreadPoolExecutor(threads), ClientShares(threads)

    async def run(self, client: str, work: Callable[..., Result], *arguments: object) -> Result:
        """Return ``work(*arguments)``, computed on a thread of the pool."""
        async with self._shares.of(client):
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


class DecodingPools:
    """Threads that read the headers of photos, threads that decode small photos, and a single one for large photos."""

    def __init__(self) -> None:
        self.headers, self.small, self._large = FairPool(_THREADS), FairPool(_THREADS), FairPool(1)

    def for_size(self, pixels: int) -> FairPool:
        """Return the pool that decodes a photo of so many pixels."""
        return self.small if pixels <= SMALL else self._large


class BatchedNetwork:
    """The network, which takes all images that wait when it is free as its next batch, whoever they belong to.

    So nobody waits for a batch to fill: a single photo is computed at once, and batches grow with the photos that wait.

    Args:
        embed: maps images [B, 3, size, size] to activations [B, dim].
        size: images per batch at most.
        on_batch: is told of each batch its number of images and its seconds.
    """

    def __init__(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        size: int,
        on_batch: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._embed, self._size, self._on_batch, self._pool = embed, size, on_batch, ThreadPoolExecutor(1)
        self._waiting: list[tuple[torch.Tensor, asyncio.Future[torch.Tensor]]] = []
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many images wait for the network."""
        return len(self._waiting)

    async def activation(self, image: torch.Tensor) -> torch.Tensor:
        """Return the activation [1, dim] of an image [1, 3, size, size]."""
        activation: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, activation))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await activation

    async def _work(self) -> None:
        """Compute batches until no image waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            images, begin = torch.cat([image for image, _ in batch]), loop.time()
            try:
                rows = await loop.run_in_executor(self._pool, self._embed, images)
                self._on_batch(len(batch), loop.time() - begin)
                for (_, activation), row in zip(batch, rows, strict=True):
                    if not activation.done():  # a client that has gone has cancelled its own
                        activation.set_result(row[None])
            except Exception as error:
                for _, activation in batch:
                    if not activation.done():
                        activation.set_exception(error)
        self._worker = None
