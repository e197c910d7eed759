"""The loader's reader: a thread that reads the bytes of coming batches."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt

from dist_train.data.loading.faults import check_headers
from dist_train.data.loading.plan import Plan, Step
from dist_train.data.loading.preprocessing import Request
from dist_train.data.loading.quarantine import Quarantine
from dist_train.data.shards.source import BadSample, ShardSource

Reading = Future[tuple[npt.NDArray[np.int64], Request]]


class Reader:
    """Read batches in the order in which they are asked for, so that the loop never waits for a disk that keeps up on
    average. A sample that cannot be read, or whose header is damaged, is replaced (see ``Quarantine``)."""

    def __init__(self, plan: Plan, quarantine: Quarantine) -> None:
        self._plan, self._quarantine = plan, quarantine
        self._source = ShardSource(plan.view.subset)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader")

    def start(self, step: Step) -> Reading:
        """Read a batch in the background; the result is that of ``read``."""
        return self._thread.submit(self.read, step)

    def read(self, step: Step) -> tuple[npt.NDArray[np.int64], Request]:
        """Read a batch.

        Returns:
            The ids of the samples that the batch really has, int64 [B], and the request for the decoder.

        Raises:
            BadSample: an image of an evaluation cannot be used.
            UserError: a shard cannot be fetched, or a class has no usable image left.
        """
        while True:
            ids = self._quarantine.stand_ins(step.ids)
            try:
                blobs = self._source.read(ids)
                check_headers(self._plan.view, ids, blobs)
                return ids, self._plan.request(step, ids, blobs)
            except BadSample as bad:
                self._quarantine.exclude(bad)

    def cancel(self, readings: list[Reading]) -> None:
        """Forget readings that have not begun, and wait for the reading that has."""
        wait([reading for reading in readings if not reading.cancel()])

    def close(self) -> None:
        """End the thread, and close the shards."""
        self._thread.shutdown(cancel_futures=True)
        self._source.close()
