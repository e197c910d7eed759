"""The shards on disk and their index.

    DIR/index.json           classes (sorted wnids), subsets, per shard: samples, bytes, sha256
    DIR/train.samples.npy    one row a sample: where its bytes lie, its size and its class
    DIR/train/000000.tar     WebDataset: KEY.cls, KEY.jpg
    DIR/train/000000.idx     the same positions for DALI's own reader (format v1.2)
    DIR/val...               likewise

``index.json`` is written last and by rename: a folder without it is an unfinished pack. A sample
id is the row in ``samples.npy``; everything downstream speaks of samples by this number.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dist_train.errors import UserError

VERSION = 1
SUBSETS = ("train", "val")


def sample_dtype(key_bytes: int) -> np.dtype[Any]:
    """Row of ``samples.npy``. ``offset`` and ``size`` locate the image's bytes in its shard;
    ``width`` and ``height`` are those stored in the file (no EXIF rotation)."""
    return np.dtype(
        [
            ("shard", "<i4"),
            ("offset", "<i8"),
            ("size", "<i4"),
            ("width", "<i4"),
            ("height", "<i4"),
            ("label", "<i4"),
            ("key", f"S{max(key_bytes, 1)}"),
        ]
    )


@dataclass(frozen=True)
class Shard:
    """One tar: file name below the subset's folder, samples, bytes and sha256 (hex)."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Subset:
    """``train`` or ``val``: its shards and the table of its samples (memory-mapped)."""

    name: str
    root: Path
    shards: tuple[Shard, ...]
    samples: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, shard: int) -> Path:
        return self.root / self.name / self.shards[shard].name

    def key(self, sample: int) -> str:
        return bytes(self.samples["key"][sample]).decode()

    def where(self, sample: int) -> str:
        """For messages: the sample's key and shard."""
        return f"sample {self.key(sample)} in {self.path(int(self.samples['shard'][sample]))}"


@dataclass(frozen=True)
class ShardSet:
    """A finished pack. ``hash`` identifies its content: classes, samples and every shard's sha256."""

    root: Path
    classes: tuple[str, ...]
    subsets: dict[str, Subset]
    hash: str

    def __getitem__(self, subset: str) -> Subset:
        if subset not in self.subsets:
            raise UserError(f"{self.root}: has no {subset!r} images; pack it again with --{subset}")
        return self.subsets[subset]


def open_shards(root: Path, sizes: bool = True) -> ShardSet:
    """Read the index of a finished pack.

    Args:
        sizes: check that every shard is there with the index's size (``verify`` lists them itself).

    Raises:
        UserError: no index (missing or unfinished pack), a damaged index, or a shard file that is
            missing or whose size is not the index's.
    """
    index = read_index(root)
    subsets = {}
    for name, entry in index["subsets"].items():
        table = root / f"{name}.samples.npy"
        if not table.is_file() or file_sha256(table) != entry["samples_sha256"]:
            raise UserError(f"{table}: missing or not the one index.json names; copy it again or pack again")
        shards = tuple(Shard(**shard) for shard in entry["shards"])
        subsets[name] = Subset(name, root, shards, np.load(table, mmap_mode="r"))
        if sizes:
            check_sizes(subsets[name])
    return ShardSet(root, tuple(index["classes"]), subsets, index["hash"])


def read_index(root: Path) -> dict[str, Any]:
    """``index.json`` of a finished pack as it was written: also the packer's plan and summary.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    path = root / "index.json"
    if not path.is_file():
        what = "an unfinished pack" if (root / ".pack").exists() else "no index.json"
        raise UserError(f"{root}: {what}; make the shards with: dist-train pack --out {root} ...")
    try:
        index: dict[str, Any] = json.loads(path.read_text())
        version, stated = index["version"], index["hash"]
        found = _content_hash(index["classes"], index["subsets"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a shard index ({error!r}); copy it again or pack again") from None
    if version != VERSION:
        raise UserError(f"{path}: index version {version}, this program reads {VERSION}; pack again")
    if found != stated:
        raise UserError(f"{path}: was changed, its content does not match its hash; copy it again or pack again")
    return index


def _content_hash(classes: list[str], subsets: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([classes, subsets], sort_keys=True).encode()).hexdigest()


def check_sizes(subset: Subset) -> None:
    """A cheap check at every start: each shard is there and has the size that the index names."""
    for number, shard in enumerate(subset.shards):
        path = subset.path(number)
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{path}: {found}, the index says {shard.bytes}: copy this shard again or repack; "
                f"dist-train verify {subset.root} checks all of them"
            )


def write_index(
    root: Path,
    classes: list[str],
    tables: dict[str, tuple[list[Shard], npt.NDArray[Any]]],
    extra: dict[str, Any],
) -> ShardSet:
    """Publish a pack: the sample tables, then ``index.json`` as the last file, by rename.

    Args:
        tables: per subset its shards and its samples (see ``sample_dtype``).
        extra: what else to keep in ``index.json`` (options, summary).
    """
    index: dict[str, Any] = {"version": VERSION, "classes": classes, "subsets": {}, **extra}
    for name, (shards, samples) in tables.items():
        table = root / f"{name}.samples.npy"
        with atomic_write(table) as file:
            np.save(file, samples)
        entry = {"shards": [vars(shard) for shard in shards], "samples": len(samples)}
        index["subsets"][name] = {**entry, "samples_sha256": file_sha256(table)}
    index["hash"] = _content_hash(classes, index["subsets"])
    write_text(root / "index.json", json.dumps(index, indent=1))
    return open_shards(root)


def tar_members(path: Path) -> list[tuple[str, str, int, int]]:
    """Files of a WebDataset tar in order: (key, extension, data offset, size).

    Raises:
        UserError: the tar is damaged or ends early (also when it is cut between two members).
    """
    members = []
    with path.open("rb") as file:
        for member in iter_tar(file, str(path)):
            key, _, extension = member.name.partition(".")
            members.append((key, extension, member.offset_data, member.size))
    return members


def dali_index(members: Sequence[tuple[str, str, int, int]]) -> str:
    """The ``.idx`` file of a shard, as DALI's own ``wds2idx`` writes it (format v1.2).

    Args:
        members: of ``tar_members``; those of one sample lie side by side.
    """
    samples = [list(group) for _, group in itertools.groupby(members, key=lambda member: member[0])]
    lines = [
        " ".join(f"{extension} {offset} {size} {key}.{extension}" for key, extension, offset, size in sample)
        for sample in samples
    ]
    return "\n".join([f"v1.2 {len(samples)}", *lines, ""])


def iter_tar(file: IO[bytes], name: str) -> Iterator[tarfile.TarInfo]:
    """Regular files of an uncompressed tar, as ``tarfile.TarInfo``; insists on the end mark.

    ``tarfile`` takes a tar that is cut on a header's boundary for a complete one. The end-of-archive
    block (512 zero bytes, POSIX ustar) tells the two apart.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps every header of a large archive in memory
                if member.isreg():
                    yield member
            end = tar.offset
        file.seek(end)
        block = file.read(512)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{name}: not a complete tar ({error}); fetch or copy it again") from None
    if len(block) < 512 or block.strip(b"\0"):
        raise UserError(f"{name}: the tar is truncated after byte {end}; fetch or copy it again")


class atomic_write:
    """``with atomic_write(path) as file``: all of it under the final name, or nothing.

    Writes to a temporary name in the same folder, then fsync and rename; removed on an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")

    def __enter__(self) -> IO[bytes]:
        self.file = self.temporary.open("w+b")
        return self.file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self.temporary, self.path)
        finally:
            try:
                self.file.close()
            finally:
                self.temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
