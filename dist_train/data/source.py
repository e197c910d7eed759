"""Bytes of samples, by position in their shard."""

from __future__ import annotations

import os
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from dist_train.data.shards import Subset
from dist_train.errors import UserError

_OPEN_FILES = 256  # well under the usual limit of 1024 for a process


class ShardSource:
    """Reads samples with ``pread`` from local shards: no seek, no lock, no scan of the tar.

    Not for use by several threads at once.
    """

    def __init__(self, subset: Subset) -> None:
        self.subset = subset
        self._files: OrderedDict[int, int] = OrderedDict()

    def read(self, ids: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
        """The encoded images: one uint8 array [size] a sample.

        Raises:
            UserError: a shard cannot be read, or ends before the sample does.
        """
        rows = self.subset.samples[ids]
        return [
            self._pread(int(sample), int(shard), int(offset), int(size))
            for sample, shard, offset, size in zip(ids, rows["shard"], rows["offset"], rows["size"], strict=True)
        ]

    def _pread(self, sample: int, shard: int, offset: int, size: int) -> npt.NDArray[np.uint8]:
        try:
            data = os.pread(self._file(shard), size, offset)
        except OSError as error:
            raise UserError(f"{self.subset.where(sample)}: cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise UserError(
                f"{self.subset.where(sample)}: the shard ends at byte {offset + len(data)}, the index says "
                f"{offset + size}: the shard does not match its index; run dist-train verify {self.subset.root}"
            )
        return np.frombuffer(data, np.uint8)

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = os.open(self.subset.path(shard), os.O_RDONLY | os.O_CLOEXEC)
        return self._files[shard]

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])
