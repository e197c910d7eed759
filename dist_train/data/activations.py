"""Stored activations: a row per image, grouped by class, float16, memory-mapped.

extract/base_train.f16.npy   [N, C] float16, rows in the order of the view (by class)
extract/base_train.rows.npz  ids [N], offsets [classes + 1]: class c has rows offsets[c]:offsets[c+1]
extract/base_train.blocks    a byte per block of rows, 1 = written (only until finished)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_train.data.splits import Groups, View
from dist_train.errors import UserError
from dist_train.files import atomic_write


@dataclass(frozen=True)
class Activations:
    """Hold the activations of a view.

    Attributes:
        rows: float16 [N, C], memory-mapped (copy on write).
        ids: int64 [N], sample ids.
        offsets: int64 [classes + 1].
    """

    rows: npt.NDArray[np.float16]
    ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each row: int64 [N]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def means(self) -> npt.NDArray[np.float32]:
        """Return the class means, float32 [classes, C], with one class in memory at a time."""
        pairs = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return np.stack([self.rows[a:b].astype(np.float32).mean(axis=0, dtype=np.float64) for a, b in pairs]).astype(
            np.float32
        )

    def select(self, classes: Sequence[int]) -> Activations:
        """Return the activations of some classes, renumbered in this order: this object where these are all classes,
        else a copy in memory."""
        if list(classes) == list(range(len(self.offsets) - 1)):
            return self
        places = np.concatenate([np.arange(self.offsets[c], self.offsets[c + 1]) for c in classes])
        counts = np.diff(self.offsets)[list(classes)]
        return Activations(self.rows[places], self.ids[places], np.concatenate([[0], np.cumsum(counts)]))


class Store:
    """Fill a table of activations block by block, with any number of ranks, in any number of starts."""

    def __init__(self, folder: Path, name: str, view: View, dim: int, block: int) -> None:
        self.table = folder / f"{name}.f16.npy"
        self.marks = folder / f"{name}.blocks"
        self.folder, self.name, self.view, self.dim, self.block = folder, name, view, dim, block
        self._by_shard = view.by_shard()

    def create(self) -> None:
        """Make the files where they are not there yet; a single rank does this. A table of another shape
        or block size is made anew."""
        blocks = -(-len(self.view) // self.block)
        if self.marks.exists() and self.marks.stat().st_size == blocks and self.table.exists():
            return
        rows = np.lib.format.open_memmap(self.table, "w+", np.float16, (len(self.view), self.dim))
        rows.flush()
        with atomic_write(self.folder / f"{self.name}.rows.npz") as file:
            np.savez(file, ids=self.view.ids, offsets=self.view.bounds)
        with atomic_write(self.marks) as file:
            file.write(bytes(blocks))

    def missing(self) -> npt.NDArray[np.int64]:
        """Return the numbers of the blocks that are not written yet."""
        return np.flatnonzero(np.fromfile(self.marks, np.uint8) == 0)

    def places(self, block: int) -> npt.NDArray[np.int64]:
        """Return the rows of a block.

        Rows are ordered by class, but a block takes images as they lie in the shards, so that disks and caches read
        forward.
        """
        return self._by_shard[block * self.block : (block + 1) * self.block]

    def write(self, block: int, rows: npt.NDArray[np.float16]) -> None:
        """Write the rows of a block to disk, and then its mark.

        Raises:
            UserError: an activation is not finite in float16.
        """
        if not np.isfinite(rows).all():
            raise UserError(f"{self.table}: activations of block {block} do not fit float16; the backbone diverged")
        table: Any = np.lib.format.open_memmap(self.table, "r+")
        table[self.places(block)] = rows
        table.flush()
        with self.marks.open("r+b") as marks:
            marks.seek(block)
            marks.write(b"\1")
            marks.flush()
            os.fsync(marks.fileno())


def write_tables(
    folder: Path, tables: Mapping[str, Groups], dim: int, pieces: Iterable[npt.NDArray[np.float16]]
) -> None:
    """Write tables whole, from activations that come in the order of their sample ids.

    Args:
        tables: name -> which samples it has.
        pieces: activations [n, dim] of all samples, of those that no table has too.
    """
    files: dict[str, Any] = {}
    for name, groups in tables.items():
        files[name] = np.lib.format.open_memmap(folder / f"{name}.f16.npy", "w+", np.float16, (len(groups), dim))
        with atomic_write(folder / f"{name}.rows.npz") as file:
            np.savez(file, ids=groups.ids, offsets=groups.bounds)
    places = {name: np.argsort(groups.ids) for name, groups in tables.items()}  # rows in the order of sample ids
    ids = {name: groups.ids[places[name]] for name, groups in tables.items()}
    done = 0
    for piece in pieces:
        for name in tables:
            first, last = np.searchsorted(ids[name], [done, done + len(piece)])
            files[name][places[name][first:last]] = piece[ids[name][first:last] - done]
        done += len(piece)
    for table in files.values():
        table.flush()


def load(folder: Path, name: str) -> Activations:
    """Open a finished table."""
    table = np.load(folder / f"{name}.f16.npy", mmap_mode="c")
    with np.load(folder / f"{name}.rows.npz") as rows:
        return Activations(table, rows["ids"], rows["offsets"])
