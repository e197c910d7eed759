"""The check of a finished pack: that shards are as their index says, and that every image decodes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dist_train.config import Orientation
from dist_train.data.loading.dali import decode_errors
from dist_train.data.packing.stored_images import read_header
from dist_train.data.packing.write_shard import decoder_batches
from dist_train.data.shards.index import Shard, Subset, open_shards
from dist_train.data.shards.members import dali_index, tar_members
from dist_train.distributed.pool import advance, progress_bar, run_tasks
from dist_train.errors import UserError, counted
from dist_train.files import file_sha256


class ShardCheck(NamedTuple):
    """Describe a shard to check: its file, its entry in the index, its rows of ``samples.npy`` with their
    orientations, and the rule that the orientations follow."""

    path: Path
    shard: Shard
    rows: npt.NDArray[Any]
    orientations: npt.NDArray[np.int32]
    rule: Orientation


def verify(root: Path, workers: int = 0, progress: bool = True) -> list[str]:
    """Check every shard of a finished pack; reads and decodes all of it.

    Args:
        root: folder of the shards.
        workers: processes, 0 = one per usable CPU.
        progress: show a bar on stderr.

    Returns:
        The problems, a line each that names the shard and, if there is one, the key; empty where there is no problem.

    Raises:
        UserError: the index itself is missing or damaged.
    """
    shards = open_shards(root, sizes=False)
    classes = len(shards.classes)
    problems = [line for subset in shards.subsets.values() for line in check_table(subset, classes)]
    total = sum(len(subset) for subset in shards.subsets.values())
    checks = (check for subset in shards.subsets.values() for check in _checks(subset, shards.orientation))
    number = sum(len(subset.shards) for subset in shards.subsets.values())
    with progress_bar(total, "verify", "image", progress) as bar:
        of_shards = run_tasks(check_shard, checks, number, workers, bar)
    return problems + [line for lines in of_shards for line in lines]


def check_table(subset: Subset, classes: int) -> list[str]:
    """Return the problems that the table of samples alone shows: counts, shards, labels, keys that come twice."""
    samples, table = subset.samples, subset.root / f"{subset.name}.samples.npy"
    problems = []
    stated = sum(shard.samples for shard in subset.shards)
    if stated != len(samples):
        problems.append(f"{table}: has {counted(len(samples), 'sample')}, the shards together {stated}")
    for column, stop in (("shard", len(subset.shards)), ("label", classes)):
        for row in np.flatnonzero((samples[column] < 0) | (samples[column] >= stop)):
            value = samples[column][row]
            problems.append(f"{table}: sample {subset.key(int(row))}: {column} {value} is not in 0..{stop - 1}")
    keys, counts = np.unique(samples["key"], return_counts=True)
    problems += [f"{table}: key {key.decode()} comes {n} times" for key, n in zip(keys, counts, strict=True) if n > 1]
    return problems


def _checks(subset: Subset, rule: Orientation) -> Iterator[ShardCheck]:
    order = np.argsort(subset.samples["shard"], kind="stable")
    bounds = np.searchsorted(subset.samples["shard"][order], np.arange(len(subset.shards) + 1))
    for number, shard in enumerate(subset.shards):
        ids = order[bounds[number] : bounds[number + 1]]
        yield ShardCheck(subset.path(number), shard, subset.samples[ids], subset.orientations(ids), rule)


def check_shard(check: ShardCheck, threads: int) -> list[str]:
    """Return all problems of a shard, a line each."""
    path = check.path
    if not path.is_file():
        advance(len(check.rows))
        return [f"{path}: is missing: copy it again, or pack again"]
    try:
        return _check_file(check) + _check_members(check) + _check_images(check, threads)
    except OSError as error:
        return [f"{path}: cannot be read ({error.strerror})"]


def _check_file(check: ShardCheck) -> list[str]:
    path, shard = check.path, check.shard
    problems = []
    if (size := path.stat().st_size) != shard.bytes:
        problems.append(f"{path}: has {size} bytes, the index says {shard.bytes}")
    if (content := file_sha256(path)) != shard.sha256:
        problems.append(f"{path}: has sha256 {content}, the index says {shard.sha256}")
    if len(check.rows) != shard.samples:
        problems.append(f"{path}: {counted(len(check.rows), 'sample')} in the table, the index says {shard.samples}")
    return problems


def _check_members(check: ShardCheck) -> list[str]:
    """Compare the tar with the table (keys, places, labels), and the ``.idx`` with the tar."""
    path = check.path
    try:
        members = tar_members(path)
    except UserError as error:
        return [str(error)]
    names = Counter((key, extension) for key, extension, _, _ in members)
    problems = [f"{path}: {key}.{extension} comes {n} times" for (key, extension), n in names.items() if n > 1]
    places = {(key, extension): (offset, size) for key, extension, offset, size in members}
    with path.open("rb") as file:
        for row in check.rows:
            key = row["key"].decode()
            stated, actual = (int(row["offset"]), int(row["size"])), places.pop((key, "jpg"), "none")
            if actual != stated:
                problems.append(f"{path}: {key}.jpg: index (offset, size) {stated}, tar {actual}")
            offset, size = places.pop((key, "cls"), (0, 0))
            label = os.pread(file.fileno(), size, offset)
            if label != str(row["label"]).encode():
                text = label[:20].decode(errors="replace")
                problems.append(f"{path}: {key}.cls: index class {row['label']}, tar {text or 'none'}")
    problems += [f"{path}: {key}.{extension}: not in the index" for key, extension in places]
    index = path.with_suffix(".idx")
    if not index.is_file() or index.read_text() != dali_index(members):
        problems.append(f"{index}: is missing or does not match its tar; make it again with wds2idx")
    return problems


def _check_images(check: ShardCheck, threads: int) -> list[str]:
    """Check each image at its place in the table: that it decodes, its width, height and orientation."""
    problems = []
    with check.path.open("rb") as file:
        for part in decoder_batches(check.rows["size"].tolist()):
            rows, orientations = check.rows[part], check.orientations[part].tolist()
            blobs = [os.pread(file.fileno(), int(row["size"]), int(row["offset"])) for row in rows]
            errors = decode_errors(blobs, threads)
            for row, orientation, blob, reason in zip(rows, orientations, blobs, errors, strict=True):
                where = f"{check.path}: {row['key'].decode()}"
                header = read_header(blob, check.rule)
                stated = int(row["width"]), int(row["height"]), orientation
                if reason is not None:
                    problems.append(f"{where}: cannot be decoded: {reason}")
                elif isinstance(header, str) or header[:3] != stated:
                    actual = header if isinstance(header, str) else header[:3]
                    problems.append(f"{where}: index (width, height, orientation) {stated}, image {actual}")
            advance(len(rows))
    return problems
