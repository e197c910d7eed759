"""The shards on disk and their index.

    DIR/index.json           classes (sorted wnids), orientation, subsets, per shard: samples, bytes, sha256; with a
                             devkit the classes' names and hierarchy (synsets)
    DIR/train.samples.npy    a row per sample: where its bytes lie, its size, orientation and class
    DIR/train.sources.txt    a line per sample: the path that it was packed from, for messages
    DIR/train/000000.tar     WebDataset: KEY.cls, KEY.jpg
    DIR/train/000000.idx     the same positions for DALI's own reader (format v1.2)
    DIR/val...               likewise

``index.json`` is written last and by rename: a folder without it is an unfinished pack. A sample
id is the row in ``samples.npy``; everything downstream refers to samples by this number.

All ranks of a node map ``samples.npy``, so that it is in memory once. A mapped file must not be cut or written in place
(the kernel ends a process that reads past its end, with SIGBUS): ``pack`` and the cache replace files by rename, which
leaves mapped files as they were.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from dist_train.config import CacheConfig, Orientation
from dist_train.data.shards.cache import Cache
from dist_train.data.sources.synsets import Synsets
from dist_train.distributed.shared import check_once
from dist_train.errors import NoShards, UserError, command, verifying
from dist_train.files import atomic_write, file_sha256, write_text
from dist_train.names import is_class_name, shown

VERSION = 2
SUBSETS = ("train", "val")
_CHUNK = 2**14  # rows: they fit a core's cache, and a column is read several times


def sample_dtype(key_bytes: int, version: int = VERSION) -> np.dtype[Any]:
    """Return the type of a row of ``samples.npy``.

    ``offset`` and ``size`` locate the image's bytes in its shard; ``width`` and ``height`` are those of the upright
    image, ``orientation`` says how the stored image is turned (``images.orientation``). Version 1 has no orientation:
    all images are taken as they are stored.
    """
    return np.dtype(
        [
            ("shard", "<i4"),
            ("offset", "<i8"),
            ("size", "<i4"),
            ("width", "<i4"),
            ("height", "<i4"),
            *([("orientation", "u1")] if version > 1 else []),
            ("label", "<i4"),
            ("key", f"S{max(key_bytes, 1)}"),
        ]
    )


@dataclass(frozen=True)
class Shard:
    """Describe a tar: file name below the subset's folder, samples, bytes and sha256 (hex)."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Subset:
    """Hold the shards of ``train`` or ``val``, and the table of its samples (memory-mapped).

    Attributes:
        root: the pack's folder, or the cache's where the pack is at a URL.
        cache: None for local shards.
        digest: sha256 of the table's file; "" where there is no file.
        block_shards: shards that a block of the order has, 0 = all are in use at a time.
    """

    name: str
    root: Path
    shards: tuple[Shard, ...]
    samples: npt.NDArray[Any]
    cache: Cache | None = None
    digest: str = ""
    block_shards: int = 0

    @property
    def source(self) -> str:
        """The folder or URL of the pack, for messages."""
        return self.cache.url if self.cache else str(self.root)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The number of each image's class: int32 [N]."""
        labels: npt.NDArray[np.int32] = self.samples["label"]
        return labels

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, shard: int) -> Path:
        """Return the file of a shard; for a URL, the file that the cache has once it is fetched."""
        if self.cache:
            return self.root / self.shards[shard].sha256
        return self.root / self.name / self.shards[shard].name

    def fetch(self, shard: int) -> Path:
        """Return the file of a shard, and fetch it where it is not there."""
        if self.cache:
            entry = self.shards[shard]
            return self.cache.get(f"{self.name}/{entry.name}", entry.sha256, entry.bytes)
        return self.path(shard)

    def orientations(self, ids: npt.NDArray[np.int64] | slice = slice(None)) -> npt.NDArray[np.int32]:
        """Return how the stored images are turned: int32 [B], see ``images.orientation``."""
        if "orientation" not in (self.samples.dtype.names or ()):  # version 1
            return np.ones(len(self.samples[ids]), np.int32)
        return self.samples["orientation"][ids].astype(np.int32)

    def sizes(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return height and width of the upright images: int64 [B, 2]."""
        rows = self.samples[ids]
        return np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)

    def key(self, sample: int) -> str:
        """Return the name of a sample in its shard."""
        return bytes(self.samples["key"][sample]).decode()

    def path_of(self, sample: int) -> str:
        """Return the path that a sample was packed from, below its source; "" where it is not known: the list is not
        fetched from a URL for a message."""
        if self.cache:
            return ""
        try:
            with (self.root / f"{self.name}.sources.txt").open(encoding="utf-8", newline="\n") as lines:
                return next(itertools.islice(lines, sample, None), "").rstrip("\n")
        except (OSError, ValueError):
            return ""

    def where(self, sample: int) -> str:
        """Return, for messages, the sample's key, the path that it was packed from, and its shard."""
        shard = self.shards[int(self.samples["shard"][sample])]
        path = self.path_of(sample)
        packed = f" ({path})" if path else ""
        return f"sample {self.key(sample)}{packed} in {self.source}/{self.name}/{shard.name}"


@dataclass(frozen=True)
class ShardSet:
    """Hold a finished pack.

    Attributes:
        source: its folder or URL.
        classes: the sorted wnids.
        hash: identifies its content: classes, samples and every shard's sha256.
        orientation: the rule that it was packed by.
        synsets: empty where it was packed without a devkit.
    """

    kind: ClassVar[Literal["shards"]] = "shards"
    source: str
    classes: tuple[str, ...]
    subsets: dict[str, Subset]
    hash: str
    orientation: Orientation
    synsets: Synsets

    @property
    def root(self) -> Path:
        """The folder of local shards."""
        return Path(self.source)

    def __getitem__(self, subset: str) -> Subset:
        if subset not in self.subsets:
            raise UserError(f"{self.source}: has no {subset!r} images; pack it again with --{subset}")
        return self.subsets[subset]


def open_shards(
    source: str | Path, cache: CacheConfig | None = None, block_shards: int = 0, sizes: bool = True
) -> ShardSet:
    """Read the index of a finished pack.

    Args:
        source: a folder or a URL.
        cache: where the shards of a URL are kept on this node.
        block_shards: how many shards are in use at a time (0 = all); decides what a cache must hold.
        sizes: check that every shard is there with the index's size (``verify`` lists them itself).

    Raises:
        UserError: there is no index (a missing or unfinished pack), the index is damaged, a shard file is missing or
            has another size than the index says, or the cache is too small.
    """
    remote = Cache(str(source), cache or CacheConfig()) if "://" in str(source) else None
    index = read_index(source, remote)
    subsets = {name: _open_subset(str(source), name, index, remote, sizes) for name in index["subsets"]}
    if remote:
        remote.check_capacity([shard.bytes for subset in subsets.values() for shard in subset.shards], block_shards)
        subsets = {name: replace(subset, block_shards=block_shards) for name, subset in subsets.items()}
    rule, synsets = index.get("orientation", "stored"), Synsets.of(index.get("synsets"))
    return ShardSet(str(source), tuple(index["classes"]), subsets, index["hash"], rule, synsets)


def _open_subset(source: str, name: str, index: dict[str, Any], remote: Cache | None, sizes: bool) -> Subset:
    """Open a subset, and check it as ``open_shards`` says.

    With ``sizes``, one rank of a node checks for all: a thousand ranks that each look at thousands of shards would wait
    for a network file system.
    """
    entry = index["subsets"][name]
    shards, digest = tuple(Shard(**shard) for shard in entry["shards"]), entry["samples_sha256"]
    if remote:
        table, root = remote.get(f"{name}.samples.npy", digest), remote.dir
        remote.hold(table)
    else:
        table, root = Path(source) / f"{name}.samples.npy", Path(source)

    def mapped() -> Subset:
        return Subset(name, root, shards, _load_table(table, index["version"]), remote, digest)

    def check() -> None:
        if not remote and (not table.is_file() or file_sha256(table) != digest):
            raise UserError(f"{table}: missing or not the one index.json names; copy it again or pack again")
        if sizes:
            _check_table(table, mapped(), len(index["classes"]))
        if sizes and not remote:
            check_sizes(mapped())

    check_once(f"{name}-{index['hash'][:16]}-{_identity(table)}", check) if sizes else check()
    return mapped()


def _identity(path: Path) -> str:
    """Return 16 hex digits that change when the file is replaced or written to."""
    about = path.stat() if path.is_file() else None
    facts = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns) if about else ()
    return hashlib.sha256(f"{path.absolute()} {facts}".encode()).hexdigest()[:16]


def read_index(source: str | Path, cache: Cache | None = None) -> dict[str, Any]:
    """Return ``index.json`` of a finished pack as it was written, with the packer's plan and summary.

    Raises:
        UserError: the index is missing, damaged or of another version.
    """
    path = f"{source}/index.json"
    if cache:
        content = cache.read("index.json")
    elif (file := Path(path)).is_file():
        content = file.read_bytes()
    else:
        begun = (file.parent / ".pack").exists()
        what = "an unfinished pack" if begun else "no index.json"
        again = command("pack", "--out", source, "--train", "ARCHIVE_OR_FOLDER", "--val", "ARCHIVE_OR_FOLDER")
        raise (UserError if begun else NoShards)(f"{source}: {what}; make the shards with: {again}")
    try:
        index: dict[str, Any] = json.loads(content)
        version, stated = index["version"], index["hash"]
        content_hash = _content_hash(index)
        if version in (1, VERSION) and content_hash == stated:
            _check_index(index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a shard index ({error!r}); copy it again or pack again") from None
    if version not in (1, VERSION):
        raise UserError(f"{path}: index version {version}, this program reads 1 and {VERSION}; pack again")
    if content_hash != stated:
        raise UserError(f"{path}: was changed, its content does not match its hash; copy it again or pack again")
    return index


def _check_index(index: dict[str, Any]) -> None:
    """Check that the names of an index from anywhere stay below its folder, and that its numbers are numbers.

    Raises:
        ValueError, KeyError, TypeError: they do not.
    """
    for name, entry in index["subsets"].items():
        if name not in SUBSETS:
            raise ValueError(f"unknown subset {name!r}")
        hashes = [entry["samples_sha256"], *(shard["sha256"] for shard in entry["shards"])]
        if not all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes):
            raise ValueError("a sha256 is not 64 hex digits")
        for shard in entry["shards"]:
            if not re.fullmatch(r"\w[\w.-]*\.tar", Shard(**shard).name):
                raise ValueError(f"shard name {shard['name']!r}")
            if not all(type(shard[key]) is int and shard[key] >= 0 for key in ("samples", "bytes")):
                raise ValueError(f"shard {shard['name']!r}: samples and bytes must be whole numbers")
    if type(index["classes"]) is not list or not all(map(is_class_name, index["classes"])):
        strange = [wnid for wnid in index["classes"] if not is_class_name(wnid)][:1]
        raise ValueError(f"classes must be a list of names; {strange} cannot be one")
    if index["version"] > 1 and index["orientation"] not in get_args(Orientation):
        raise ValueError(f"orientation {index['orientation']!r}")
    Synsets.of(index.get("synsets"))


def _load_table(path: Path, version: int) -> npt.NDArray[Any]:
    """Return ``samples.npy``, memory-mapped."""
    try:
        table: npt.NDArray[Any] = np.asarray(np.load(path, mmap_mode="r"))  # refuses pickled objects
        if table.ndim != 1 or table.dtype != sample_dtype(table.dtype["key"].itemsize, version):
            raise ValueError(f"its type is {table.dtype}")
    except Exception as error:  # NumPy's header parser raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a table of samples ({reason}); copy it again or pack again") from None
    return table


def _check_table(path: Path, subset: Subset, classes: int) -> None:
    """Check that every row points into a shard of the index, and has one of its classes."""
    ends = np.array([shard.bytes for shard in subset.shards] or [0])
    for rows in chunks(subset.samples):
        known = (rows["shard"] >= 0) & (rows["shard"] < len(ends)) & (rows["label"] >= 0) & (rows["label"] < classes)
        known &= (rows["offset"] >= 512) & (rows["size"] >= 0)
        if "orientation" in (rows.dtype.names or ()):
            known &= (rows["orientation"] >= 1) & (rows["orientation"] <= 8)
        if not known.all() or (rows["offset"] + rows["size"] > ends[rows["shard"]]).any():
            raise UserError(f"{path}: rows do not fit the index; {verifying(subset.source)}")


def chunks(table: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield a table in pieces, so that a computation takes little memory and finds its rows in the CPU's cache."""
    return (table[first : first + _CHUNK] for first in range(0, len(table), _CHUNK))


def _content_hash(index: dict[str, Any]) -> str:
    content = [index["classes"], index["subsets"], *([index.get("orientation")] if index["version"] != 1 else [])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_sizes(subset: Subset) -> None:
    """Check, cheaply at every start, that each shard is there and has the size that the index says.

    Raises:
        UserError: a shard is missing or has another size.
    """
    for number, shard in enumerate(subset.shards):
        path = subset.path(number)
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            state = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{path}: {state}, the index says {shard.bytes}: copy this shard again or repack; "
                f"{command('verify', subset.root)} checks all of them"
            )


def write_index(
    root: Path,
    classes: list[str],
    orientation: Orientation,
    tables: dict[str, tuple[list[Shard], npt.NDArray[Any], list[str]]],
    extra: dict[str, Any],
) -> ShardSet:
    """Publish a pack: the sample tables, then ``index.json`` as the last file, by rename.

    Args:
        tables: per subset its shards, its samples (see ``sample_dtype``) and the path that each sample was packed from.
        extra: other entries of ``index.json`` (plan, summary).
    """
    index: dict[str, Any] = {
        "version": VERSION, "classes": classes, "orientation": orientation, "subsets": {}, **extra
    }  # fmt: skip
    for name, (shards, samples, sources) in tables.items():
        # A line each; characters that would break the line are escaped.
        write_text(root / f"{name}.sources.txt", "".join(f"{shown(path)}\n" for path in sources))
        table = root / f"{name}.samples.npy"
        with atomic_write(table) as file:
            np.save(file, samples)
        entry = {"shards": [vars(shard) for shard in shards], "samples": len(samples)}
        index["subsets"][name] = {**entry, "samples_sha256": file_sha256(table)}
    index["hash"] = _content_hash(index)
    write_text(root / "index.json", json.dumps(index, indent=1))
    return open_shards(root, sizes=False)  # as written, right or wrong: verify says which
