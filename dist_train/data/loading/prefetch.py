"""Shards of coming batches, fetched into the node's cache before the loader needs them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from dist_train.data.shards.index import Subset
from dist_train.distributed.context import Context
from dist_train.errors import UserError


class ShardPrefetcher:
    """Fetch the shards of coming global batches, in the order of their use, in one process of a node.

    It stays one block of shards ahead of the batch in use; without blocks the first batches need all shards anyway.
    For local shards it does nothing.
    """

    def __init__(
        self, subset: Subset, batch_ids: Callable[[int], npt.NDArray[np.int64]], numbers: range, context: Context
    ) -> None:
        """Start to fetch.

        Args:
            batch_ids: returns the sample ids of a global batch by its number.
            numbers: the global batches that will be used.
        """
        self._subset, self._batch_ids, self._numbers = subset, batch_ids, numbers
        self._reached = numbers.start
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if subset.cache is not None and context.local_rank == 0 and numbers:
            self._thread = threading.Thread(
                target=self._run, args=(subset.cache.config.downloads,), name="prefetch", daemon=True
            )
            self._thread.start()

    def reached(self, number: int) -> None:
        """Note that global batch ``number`` is being read."""
        self._reached = number

    def close(self) -> None:
        """Stop fetching, and wait for the downloads that have begun."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, downloads: int) -> None:
        subset, ahead = self._subset, 1
        with ThreadPoolExecutor(downloads, thread_name_prefix="download") as pool:
            for number in self._numbers:
                while number > self._reached + ahead and not self._closed.wait(0.05):
                    pass
                ids = self._batch_ids(number)
                if number == self._numbers.start and subset.block_shards:
                    ahead = max(1, subset.block_shards * len(subset) // len(subset.shards) // len(ids))
                shards = np.unique(subset.samples["shard"][ids])
                for download in [pool.submit(self._fetch, int(shard)) for shard in shards]:
                    download.result()
                if self._closed.is_set():
                    return

    def _fetch(self, shard: int) -> None:
        try:
            if not self._closed.is_set():
                self._subset.fetch(shard)
        except UserError:
            pass  # the reader meets the same error, and reports it
