"""The shards on disk and their index.

    DIR/index.json           classes (sorted wnids), orientation, subsets, per shard: samples, bytes, sha256; of a
                             devkit the classes' names and hierarchy (synsets)
    DIR/train.samples.npy    one row a sample: where its bytes lie, its size, orientation and class
    DIR/train.sources.txt    one line a sample: the path that it was packed from, for messages
    DIR/train/000000.tar     WebDataset: KEY.cls, KEY.jpg
    DIR/train/000000.idx     the same positions for DALI's own reader (format v1.2)
    DIR/val...               likewise

``index.json`` is written last and by rename: a folder without it is an unfinished pack. A sample
id is the row in ``samples.npy``; everything downstream speaks of samples by this number.

All ranks of a node map ``samples.npy``, so that it is in memory once. A mapped file must not be cut or written in place
(the kernel ends whoever reads past its end, with SIGBUS): ``pack`` and the cache replace files by rename, which leaves
what is mapped as it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, get_args

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
    """Row of ``samples.npy``. ``offset`` and ``size`` locate the image's bytes in its shard; ``width`` and ``height``
    are those of the upright image, ``orientation`` says how the stored one is turned (``data.orientation``). Version 1
    has no orientation: all images are taken as they are stored."""
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
    """One tar: file name below the subset's folder, samples, bytes and sha256 (hex)."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Subset:
    """``train`` or ``val``: its shards and the table of its samples (memory-mapped).

    Attributes:
        root: the pack's folder, or the cache's where the pack is at a URL.
        cache: None for local shards.
        digest: sha256 of the table's file; "" where there is none.
    """

    name: str
    root: Path
    shards: tuple[Shard, ...]
    samples: npt.NDArray[Any]
    cache: Cache | None = None
    digest: str = ""

    @property
    def source(self) -> str:
        """Where the pack is, for messages: folder or URL."""
        return self.cache.url if self.cache else str(self.root)

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, shard: int) -> Path:
        """The file of a shard; for a URL, where the cache has it once it is fetched."""
        if self.cache:
            return self.root / self.shards[shard].sha256
        return self.root / self.name / self.shards[shard].name

    def fetch(self, shard: int) -> Path:
        """The same, and the file is there."""
        if self.cache:
            entry = self.shards[shard]
            return self.cache.get(f"{self.name}/{entry.name}", entry.sha256, entry.bytes)
        return self.path(shard)

    def orientations(self, ids: npt.NDArray[np.int64] | slice = slice(None)) -> npt.NDArray[np.int32]:
        """How the stored images [B] are turned, see ``data.orientation``."""
        if "orientation" not in (self.samples.dtype.names or ()):  # version 1
            return np.ones(len(self.samples[ids]), np.int32)
        return self.samples["orientation"][ids].astype(np.int32)

    def key(self, sample: int) -> str:
        return bytes(self.samples["key"][sample]).decode()

    def path_of(self, sample: int) -> str:
        """The path that a sample was packed from, below its source; "" where it is not known here: the list is not
        fetched from a URL for a message."""
        if self.cache:
            return ""
        try:
            with (self.root / f"{self.name}.sources.txt").open(encoding="utf-8", newline="\n") as lines:
                return next(itertools.islice(lines, sample, None), "").rstrip("\n")
        except (OSError, ValueError):
            return ""

    def where(self, sample: int) -> str:
        """For messages: the sample's key, the path that it was packed from, and its shard."""
        shard = self.shards[int(self.samples["shard"][sample])]
        path = self.path_of(sample)
        packed = f" ({path})" if path else ""
        return f"sample {self.key(sample)}{packed} in {self.source}/{self.name}/{shard.name}"


@dataclass(frozen=True)
class ShardSet:
    """A finished pack. ``hash`` identifies its content: classes, samples and every shard's sha256. ``orientation`` is
    the rule that it was packed by. ``synsets`` is empty where it was made without a devkit."""

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
        cache: for a URL, where shards are kept on this node.
        block_shards: how many shards are in use at a time (0 = all); decides what a cache must hold.
        sizes: check that every shard is there with the index's size (``verify`` lists them itself).

    Raises:
        UserError: no index (missing or unfinished pack), a damaged index, or a shard file that is
            missing or whose size is not the index's; or the cache is too small.
    """
    remote = Cache(str(source), cache or CacheConfig(), block_shards) if "://" in str(source) else None
    index = read_index(source, remote)
    subsets = {name: _open_subset(str(source), name, index, remote, sizes) for name in index["subsets"]}
    if remote:
        remote.check_capacity([shard.bytes for subset in subsets.values() for shard in subset.shards])
    rule, synsets = index.get("orientation", "stored"), Synsets.of(index.get("synsets"))
    return ShardSet(str(source), tuple(index["classes"]), subsets, index["hash"], rule, synsets)


def _open_subset(source: str, name: str, index: dict[str, Any], remote: Cache | None, sizes: bool) -> Subset:
    """One subset, checked as ``open_shards`` says: with ``sizes``, by one rank of a node for all. A thousand ranks that
    each look at thousands of shards would wait for a network file system."""
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
    """16 hex digits that change when the file is replaced or written to."""
    about = path.stat() if path.is_file() else None
    facts = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns) if about else ()
    return hashlib.sha256(f"{path.absolute()} {facts}".encode()).hexdigest()[:16]


def read_index(source: str | Path, cache: Cache | None = None) -> dict[str, Any]:
    """``index.json`` of a finished pack as it was written: also the packer's plan and summary.

    Raises:
        UserError: it is missing, damaged or of another version.
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
        found = _content_hash(index)
        if version in (1, VERSION) and found == stated:
            _check_index(index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a shard index ({error!r}); copy it again or pack again") from None
    if version not in (1, VERSION):
        raise UserError(f"{path}: index version {version}, this program reads 1 and {VERSION}; pack again")
    if found != stated:
        raise UserError(f"{path}: was changed, its content does not match its hash; copy it again or pack again")
    return index


def _check_index(index: dict[str, Any]) -> None:
    """Whoever made the index: its names stay below its folder, its numbers are numbers.

    Raises:
        ValueError and its like.
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
    """``samples.npy``, memory-mapped."""
    try:
        table: npt.NDArray[Any] = np.asarray(np.load(path, mmap_mode="r"))  # refuses pickled objects
        if table.ndim != 1 or table.dtype != sample_dtype(table.dtype["key"].itemsize, version):
            raise ValueError(f"its type is {table.dtype}")
    except Exception as error:  # NumPy's header parser has many
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a table of samples ({reason}); copy it again or pack again") from None
    return table


def _check_table(path: Path, subset: Subset, classes: int) -> None:
    """Every row points into a shard that the index names, and names one of its classes."""
    ends = np.array([shard.bytes for shard in subset.shards] or [0])
    for rows in chunks(subset.samples):
        known = (rows["shard"] >= 0) & (rows["shard"] < len(ends)) & (rows["label"] >= 0) & (rows["label"] < classes)
        known &= (rows["offset"] >= 512) & (rows["size"] >= 0)
        if "orientation" in (rows.dtype.names or ()):
            known &= (rows["orientation"] >= 1) & (rows["orientation"] <= 8)
        if not known.all() or (rows["offset"] + rows["size"] > ends[rows["shard"]]).any():
            raise UserError(f"{path}: rows do not fit the index; {verifying(subset.source)}")


def chunks(table: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """A table in pieces: what is computed of it takes little memory, and finds its rows in the cache."""
    return (table[first : first + _CHUNK] for first in range(0, len(table), _CHUNK))


def _content_hash(index: dict[str, Any]) -> str:
    content = [index["classes"], index["subsets"], *([index.get("orientation")] if index["version"] != 1 else [])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_sizes(subset: Subset) -> None:
    """A cheap check at every start: each shard is there and has the size that the index names."""
    for number, shard in enumerate(subset.shards):
        path = subset.path(number)
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{path}: {found}, the index says {shard.bytes}: copy this shard again or repack; "
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
        tables: per subset its shards, its samples (see ``sample_dtype``) and the path that each was packed from.
        extra: what else to keep in ``index.json`` (options, summary).
    """
    index: dict[str, Any] = {
        "version": VERSION, "classes": classes, "orientation": orientation, "subsets": {}, **extra
    }  # fmt: skip
    for name, (shards, samples, sources) in tables.items():
        # A line each; what would break the line is shown escaped.
        write_text(root / f"{name}.sources.txt", "".join(f"{shown(path)}\n" for path in sources))
        table = root / f"{name}.samples.npy"
        with atomic_write(table) as file:
            np.save(file, samples)
        entry = {"shards": [vars(shard) for shard in shards], "samples": len(samples)}
        index["subsets"][name] = {**entry, "samples_sha256": file_sha256(table)}
    index["hash"] = _content_hash(index)
    write_text(root / "index.json", json.dumps(index, indent=1))
    return open_shards(root, sizes=False)  # as written, right or wrong: verify says which


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


def iter_tar(file: IO[bytes], name: str, every: bool = False) -> Iterator[tarfile.TarInfo]:
    """Regular files of an uncompressed tar, as ``tarfile.TarInfo``, or ``every`` member; insists on the end mark.

    ``tarfile`` takes a tar that is cut on a header's boundary for a complete one. The end-of-archive
    block (512 zero bytes, POSIX ustar) tells the two apart.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps every header of a large archive in memory
                if every or member.isreg():
                    yield member
            end = tar.offset
        file.seek(end)
        block = file.read(512)
    except (tarfile.TarError, EOFError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(f"{name}: not a complete tar ({reason}); fetch or copy it again") from None
    if len(block) < 512 or block.strip(b"\0"):
        raise UserError(f"{name}: the tar is truncated after byte {end}; fetch or copy it again")
