"""Copies of the images in parquet files, which cannot be read in place.

Each parquet file gets one file with the bytes of all its images, below ``OUT/.pack/spool``. A copy is written whole or
not at all, is kept while the pack is unfinished, and goes with ``.pack``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dist_train.data.sources.archives import Items
from dist_train.data.sources.parquet import image_bytes
from dist_train.distributed.pool import advance, progress_bar, run_tasks
from dist_train.errors import UserError
from dist_train.files import atomic_write


class SpoolTask(NamedTuple):
    """Describe a parquet file to copy, and the file for its images' bytes."""

    source: Path
    path: Path

    @property
    def sizes(self) -> Path:
        """The file that notes the bytes of each image, int64 [rows]. It is written last."""
        return self.path.with_suffix(".npy")

    def done(self) -> npt.NDArray[np.int64] | None:
        """Return the sizes, if both files are whole."""
        if not (self.sizes.is_file() and self.path.is_file()):
            return None
        sizes: npt.NDArray[np.int64] = np.load(self.sizes)
        return sizes if self.path.stat().st_size == sizes.sum() else None


def spool_tasks(subsets: Iterable[Items], folder: Path) -> dict[Path, SpoolTask]:
    """Return a task for each file that cannot be read in place."""
    files = [file for items in subsets if items.parts and items.parts.digest for file in items.parts.files]
    return {file: SpoolTask(file, folder / f"{n:05d}.images") for n, file in enumerate(dict.fromkeys(files))}


def spool(tasks: Collection[SpoolTask], workers: int, progress: bool) -> None:
    """Copy the files that are not there yet, in processes.

    Raises:
        UserError: a file is damaged (see ``parquet.image_bytes``).
        OSError: a copy cannot be written.
    """
    todo = [task for task in tasks if task.done() is None]
    for task in todo:
        task.path.parent.mkdir(exist_ok=True)
        for leftover in task.path.parent.glob(".*.tmp-*"):
            leftover.unlink()
    with progress_bar(len(tasks), "copy parquet", "file", progress, done=len(tasks) - len(todo)) as bar:
        run_tasks(spool_file, todo, len(todo), workers, bar)


def spool_file(task: SpoolTask, threads: int) -> None:
    """Copy the images of a file, and note their sizes."""
    sizes = []
    with atomic_write(task.path) as file:
        for images in image_bytes(task.source, threads):
            for image in images:
                file.write(image)
                sizes.append(len(image))
            advance(0)
    with atomic_write(task.sizes) as file:
        np.save(file, np.array(sizes, np.int64))
    advance(1)


def spooled(items: Items, tasks: dict[Path, SpoolTask]) -> Items:
    """Return the same images, by their places in the copies.

    Raises:
        UserError: a file has fewer images than when it was scanned.
    """
    if items.parts is None or not items.parts.digest:
        return items
    offset, size = np.zeros(len(items), np.int64), np.zeros(len(items), np.int64)
    for number, file in enumerate(items.parts.files):
        sizes = tasks[file].done()
        rows = np.flatnonzero(items.parts.file == number)
        row_in_file = items.offset[rows]
        if sizes is None or row_in_file.max(initial=-1) >= len(sizes):
            raise UserError(f"{file}: changed since it was scanned; start again")
        offset[rows], size[rows] = (np.cumsum(sizes) - sizes)[row_in_file], sizes[row_in_file]
    copies = tuple(tasks[file].path for file in items.parts.files)
    return replace(items, offset=offset, size=size, parts=items.parts._replace(files=copies, digest=""))
