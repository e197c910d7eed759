"""The bytes of samples, read by their position in their shard."""

from __future__ import annotations

import fcntl
import os
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from dist_train.data.shards.index import Subset
from dist_train.errors import UserError, verifying

_OPEN_FILES = 256  # well under the usual limit of 1024 for a process
_HEADER = 512  # a tar member's header lies right before its data


class BadSample(UserError):
    """Report a sample that cannot be used. ``reason`` leaves out the sample's name, which the message has."""

    def __init__(self, subset: Subset, sample: int, reason: str) -> None:
        super().__init__(f"{subset.where(sample)}: {reason}; {verifying(subset.source)}")
        self.sample, self.reason = sample, reason


class ShardSource:
    """Read samples with ``pread`` from shards on this node, without a seek, a lock or a scan of the tar.

    An open shard of the cache is locked (shared) against eviction. Only one thread may use an instance at a time.
    """

    def __init__(self, subset: Subset) -> None:
        self.subset = subset
        self._files: OrderedDict[int, int] = OrderedDict()
        blocks = subset.block_shards if subset.cache else 0
        self._limit = min(_OPEN_FILES, 2 * blocks or _OPEN_FILES)  # an open shard is not evicted

    def read(self, ids: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
        """Return the encoded images: a uint8 array [size] for each sample.

        Raises:
            BadSample: a sample's shard cannot be read, ends before the sample does, or has another
                member in its place.
            UserError: a shard cannot be fetched into the cache.
        """
        rows = self.subset.samples[ids]
        return [
            self._pread(int(sample), int(shard), int(offset), int(size), bytes(key))
            for sample, shard, offset, size, key in zip(
                ids, rows["shard"], rows["offset"], rows["size"], rows["key"], strict=True
            )
        ]

    def _pread(self, sample: int, shard: int, offset: int, size: int, key: bytes) -> npt.NDArray[np.uint8]:
        try:
            data = os.pread(self._file(shard), _HEADER + size, offset - _HEADER)
        except OSError as error:
            raise BadSample(self.subset, sample, f"cannot be read ({error.strerror})") from None
        if len(data) != _HEADER + size:
            raise BadSample(
                self.subset, sample, "the shard ends before it, the index says otherwise: the file was cut or replaced"
            )
        # Reading the header costs nothing more, and it reveals a shard that was replaced under its index although the
        # bytes of the other shard may well decode.
        if key.isascii() and data[:100].rstrip(b"\0") != (key + b".jpg")[:100]:
            raise BadSample(
                self.subset, sample, "another file lies in its place: the shard was replaced under the index"
            )
        return np.frombuffer(data, np.uint8, offset=_HEADER)

    def _file(self, shard: int) -> int:
        """Return the descriptor of an open shard, and close the least recently used one where too many are open."""
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= self._limit:
            os.close(self._files.popitem(last=False)[1])
        descriptor = os.open(self.subset.fetch(shard), os.O_RDONLY | os.O_CLOEXEC)
        if self.subset.cache is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        self._files[shard] = descriptor
        return descriptor

    def close(self) -> None:
        """Close all open shards."""
        while self._files:
            os.close(self._files.popitem()[1])
