"""Where every source image lies: archives and folders are listed, never unpacked.

Train is ``ILSVRC2012_img_train.tar`` (a tar of one tar per class, read by its headers only), a folder
with a folder per class, or a flat folder or tar of images that are named after their class. Val is
``ILSVRC2012_img_val.tar`` or a flat folder, or a folder with a folder per class (``labels`` says where
its labels come from). Both may be parquet files (``parquet``). Hidden files (``.DS_Store``) are left aside; any
other file counts as an image, and the packer reports those that are none.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dist_train.data.headers import IMAGE_SUFFIXES
from dist_train.data.kaggle import refuse_root, unpack_remedy
from dist_train.data.labels import label_file, train_labels, train_name_label, val_labels
from dist_train.data.parquet import Numbering, list_parquet
from dist_train.data.pool import progress_bar
from dist_train.data.shards import iter_tar
from dist_train.data.sources import files_of
from dist_train.data.synsets import Synsets
from dist_train.errors import UserError

TRAIN_REMEDY = "give ILSVRC2012_img_train.tar, a folder with one folder per class, or parquet files"
VAL_REMEDY = "give ILSVRC2012_img_val.tar with --devkit, a folder with one folder per class, or parquet files"

# First bytes of compressed files: reading at a position needs them as they are.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "zip",
}
MAX_KEY_BYTES = 90  # with its extension a key has to fit the 100 bytes of a plain tar header


class Item(NamedTuple):
    """One source image: its bytes lie at [offset, offset + size) of the file ``path``."""

    path: str
    offset: int
    size: int
    key: str
    label: int
    source: str
    """For messages: the archive and the name in it."""


class Found(NamedTuple):
    """A listed file: name below the source ("class/file" or "file"), offset and size in bytes."""

    name: str
    offset: int
    size: int


class Parts(NamedTuple):
    """The several files that the images of a subset lie in.

    Attributes:
        files: the files.
        file: int32 [N], number of each image's file.
        digest: of parquet files, hex sha256 over their footers; "" once the images can be read in place.
    """

    files: tuple[Path, ...]
    file: npt.NDArray[np.int32]
    digest: str


@dataclass(frozen=True)
class Items:
    """The N source images of a subset, as columns (1.28 million rows take about 150 MB).

    Attributes:
        source: the archive, or the folder.
        folder: whether it is a folder with a file per image.
        names: N names below the source, "class/file" or "file".
        offset, size: int64 [N], place in the archive, in bytes (a folder's files: offset 0). In parquet files the
            offset is the row, and the size is 0, until ``spool`` knows both.
        label: int32 [N], index in the sorted classes.
        parts: where the images lie in several files; else None.
    """

    source: Path
    folder: bool
    names: list[str]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    label: npt.NDArray[np.int32]
    parts: Parts | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hash(self) -> str:
        """16 hex digits of sha256 over names, places and labels (not over the images' bytes)."""
        content = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        for column in (self.offset, self.size, self.label):
            content.update(column.tobytes())
        if self.parts:
            content.update(self.parts.file.tobytes() + self.parts.digest.encode())
        return content.hexdigest()[:16]

    def where(self, row: int) -> str:
        return f"{self.source}: {self.names[row]}"

    def __getitem__(self, row: int) -> Item:
        name = self.names[row]
        path = self.source / name if self.folder else self.source
        if self.parts:
            path = self.parts.files[self.parts.file[row]]
        place = int(self.offset[row]), int(self.size[row])
        return Item(str(path), *place, sample_key(name), int(self.label[row]), self.where(row))

    def select(self, rows: npt.NDArray[np.int64]) -> Items:
        columns = (self.offset[rows], self.size[rows], self.label[rows])
        parts = self.parts and self.parts._replace(file=self.parts.file[rows])
        return Items(self.source, self.folder, [self.names[row] for row in rows], *columns, parts)


@dataclass(frozen=True)
class Scan:
    """What there is to pack: sorted classes (wnids), the images of each subset, what the devkit says of classes;
    ``notes`` are lines to be printed, as where the labels came from."""

    classes: list[str]
    subsets: dict[str, Items]
    synsets: Synsets
    notes: tuple[str, ...] = ()


def scan(train: Path, val: Path | None, devkit: Path | None, progress: bool = True) -> Scan:
    """List all source images; the classes are those of ``train``.

    Raises:
        UserError: a source is missing, damaged, of the wrong kind, or does not fit the others; two
            images of a subset have the same key.
    """
    numbering, notes = Numbering(), list[str]()
    listed = _list_source(train, "train", numbering, progress)
    labels = {"train": train_labels(train, listed.names)}
    listings = {"train": (train, listed)}
    classes = sorted(set(labels["train"]))
    file = label_file(devkit, val)
    if val is not None:
        listings["val"] = val, _list_source(val, "val", numbering, progress)
        by = "its parquet file" if listings["val"][1].parts else "its folder"
        labels["val"], used = val_labels(val, listings["val"][1].names, classes, file, by)
        notes.append(f"val: labels {used}")
    elif devkit is not None:
        raise UserError(f"--devkit {devkit}: it labels the validation images; give --val too, or leave it out")
    subsets = {name: _items(*listings[name], labels[name], classes) for name in listings}
    for name, items in subsets.items():
        _check_keys(items)
        passed_over = listings[name][1].passed_over
        if passed_over:
            others = ", ".join(f"{count} of {split}" for split, count in passed_over.items())
            notes.append(f"{name}: {listings[name][0]} has files of other splits, passed over: {others}")
    return Scan(classes, subsets, file.synsets if file else Synsets(), tuple(notes))


def hold_out(found: Scan, share: float, seed: int) -> Scan:
    """Some of each class's training images as ``val``.

    Raises:
        UserError: a class has one image only.
    """
    train, val = found.subsets["train"], np.zeros(len(found.subsets["train"]), bool)
    for label in range(len(found.classes)):
        rows = np.flatnonzero(train.label == label)
        if len(rows) < 2:
            raise UserError(f"{train.where(rows[0])}: the only image of its class; --val_share needs two at least")
        held = min(len(rows) - 1, max(1, round(share * len(rows))))
        val[np.random.RandomState([seed, label]).permutation(rows)[:held]] = True
    subsets = {"train": train.select(np.flatnonzero(~val)), "val": train.select(np.flatnonzero(val))}
    return replace(found, subsets=subsets)


def sample_key(name: str) -> str:
    """The key of "class/stem.ext" or "stem.ext": the stem, with the class before it if it is not
    there yet. Webdataset takes all after a key's first dot for its extension, so anything but
    letters, digits, ``-`` and ``_`` becomes ``_``."""
    group, file = _group(name), name.rpartition("/")[2]
    stem = file.rpartition(".")[0] or file
    if group and stem != group and not stem.startswith(f"{group}_"):
        stem = f"{group}_{stem}"
    return re.sub(r"[^\w-]", "_", stem)


def _group(name: str) -> str:
    """The class of "class/.../file"; empty for "file"."""
    return name.partition("/")[0] if "/" in name else ""


class Listing(NamedTuple):
    """The images of a subset before they have labels: names below the source, places in bytes, files."""

    names: list[str]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    parts: Parts | None = None
    passed_over: dict[str, int] = {}  # noqa: RUF012  # never changed


def _list_source(path: Path, subset: str, numbering: Numbering, progress: bool) -> Listing:
    refuse_root(path, f"--{subset}")
    files, passed_over = files_of(path, subset)
    if files and files[0].suffix == ".parquet":
        images = list_parquet(files, subset, numbering, progress)
        parts = Parts(images.files, images.file, images.digest)
        return Listing(images.names, images.row, np.zeros_like(images.row), parts, passed_over)
    list_files = _list_train if subset == "train" else _list_val
    found = [list(list_files(file, progress)) for file in files or [path]]
    every = [file for some in found for file in some]
    offset = np.fromiter((file.offset for file in every), np.int64, len(every))
    size = np.fromiter((file.size for file in every), np.int64, len(every))
    number = np.repeat(np.arange(len(found), dtype=np.int32), [len(some) for some in found])
    parts_ = Parts(tuple(files), number, "") if files and files != [path] else None
    return Listing([file.name for file in every], offset, size, parts_, passed_over)


def _items(source: Path, listed: Listing, labels: list[str], classes: list[str]) -> Items:
    position = {wnid: label for label, wnid in enumerate(classes)}
    label = np.fromiter((position[wnid] for wnid in labels), np.int32, len(labels))
    folder = source.is_dir() and listed.parts is None
    return Items(source, folder, listed.names, listed.offset, listed.size, label, listed.parts)


def _list_train(path: Path, progress: bool) -> Iterator[Found]:
    if not path.is_dir():
        return _list_train_tar(path, progress)
    if not any(entry.is_dir() for entry in _entries(path)) and any(True for _ in _walk(path)):
        return _walk(path)
    return _list_class_folders(path, "train", progress, TRAIN_REMEDY)


def _list_val(path: Path, progress: bool) -> Iterator[Found]:
    if path.is_dir() and any(entry.is_dir() for entry in _entries(path)):
        return _list_class_folders(path, "val", progress, VAL_REMEDY)
    found = list(_walk(path) if path.is_dir() else _list_flat_tar(path, "val", progress, VAL_REMEDY))
    if not found:
        raise UserError(f"{path}: holds no validation image; {VAL_REMEDY}")
    return iter(found)


# ---- listing


def _list_train_tar(path: Path, progress: bool) -> Iterator[Found]:
    """A tar of one tar per class; or a flat one of images that are named after their class."""
    with _open_tar(path, TRAIN_REMEDY) as file:
        first = next(_members(file, str(path)), None)
    if first and train_name_label(first.name):
        return _list_flat_tar(path, "train", progress, TRAIN_REMEDY)
    return _list_tar_of_tars(path, progress)


def _list_tar_of_tars(path: Path, progress: bool) -> Iterator[Found]:
    """Images of a training archive; a class comes as one inner tar, named after it."""
    with _open_tar(path, TRAIN_REMEDY) as file, _scan_bar(file, "train", progress) as bar:
        classes = 0
        for outer in _members(file, str(path)):
            classes += 1
            inner = Path(outer.name)
            if inner.suffix != ".tar":
                val = inner.name.startswith("ILSVRC2012_val_")
                guess = "this looks like the validation archive" if val else "not one tar per class"
                raise UserError(f"{path}: holds {outer.name!r}: {guess}; as --train {TRAIN_REMEDY}")
            empty = True
            part = io.BufferedReader(_Slice(file.fileno(), outer.offset_data, outer.size))
            for member in _members(part, f"{path}: {outer.name}"):
                offset = outer.offset_data + member.offset_data
                bar.update(offset - bar.n)
                empty = False
                yield Found(f"{inner.stem}/{Path(member.name).name}", offset, member.size)
            if empty:
                raise UserError(f"{path}: {outer.name}: holds no image; fetch the archive again")
        if classes == 0:
            raise UserError(f"{path}: holds no class; {TRAIN_REMEDY}")
        bar.update(bar.total - bar.n)


def _list_flat_tar(path: Path, subset: str, progress: bool, remedy: str) -> Iterator[Found]:
    with _open_tar(path, remedy) as file, _scan_bar(file, subset, progress) as bar:
        for member in _members(file, str(path)):
            if member.name.endswith(".tar"):
                guess = "this looks like the training archive" if subset == "val" else "not all of it are images"
                raise UserError(f"{path}: holds {member.name!r}: {guess}; as --{subset} {remedy}")
            bar.update(member.offset_data - bar.n)
            yield Found(Path(member.name).name, member.offset_data, member.size)
        bar.update(bar.total - bar.n)


def _list_class_folders(path: Path, subset: str, progress: bool, remedy: str) -> Iterator[Found]:
    entries = _entries(path)
    loose = [entry.name for entry in entries if entry.is_file() and entry.name.lower().endswith(IMAGE_SUFFIXES)]
    if loose:
        raise UserError(f"{path}: image {loose[0]!r} lies in no class folder; move or remove it, or {remedy}")
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise UserError(f"{path}: holds no class folder; {remedy}")
    with progress_bar(len(folders), f"scan {subset}", "class", progress) as bar:
        for folder in folders:
            files = list(_walk(Path(folder.path), f"{folder.name}/"))
            if not files:
                raise UserError(f"{folder.path}: the class has no image; add some or remove the folder")
            yield from files
            bar.update()


def _walk(folder: Path, prefix: str = "") -> Iterator[Found]:
    """Files below a folder, by name (some sets have ``class/images/x.jpg``)."""
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield Found(f"{prefix}{entry.name}", 0, entry.stat().st_size)
        else:
            raise UserError(f"{entry.path}: a broken link or no regular file; remove it")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _members(file: Any, name: str) -> Iterator[tarfile.TarInfo]:
    return (member for member in iter_tar(file, name) if not Path(member.name).name.startswith("."))


def _open_tar(path: Path, remedy: str) -> io.FileIO:
    """Unbuffered: a header is 512 bytes, and the images between two are jumped over."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {remedy}")
    try:
        file = io.FileIO(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    start = os.pread(file.fileno(), 8, 0)
    kind = next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), "")
    remedy_ = "unpack it and give the folder" if kind == "zip" else "uncompress it to a .tar"
    cause = unpack_remedy(path, kind) or (
        kind and f"is {kind}-compressed, its images cannot be read in place; {remedy_}"
    )
    if cause:
        file.close()
        raise UserError(f"{path}: {cause}")
    return file


def _scan_bar(file: io.FileIO, subset: str, show: bool) -> tqdm[Any]:
    return progress_bar(os.fstat(file.fileno()).st_size, f"scan {subset}", "B", show)


class _Slice(io.RawIOBase):
    """Bytes [start, start + size) of an open file, as a file with a position of its own."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self.descriptor, self.start, self.size, self.position = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        room = max(0, self.size - self.position)
        count = os.preadv(self.descriptor, [memoryview(buffer)[:room]], self.start + self.position)
        self.position += count
        return count


def _check_keys(items: Items) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(items.names):
        key = sample_key(name)
        if first.setdefault(key, row) != row:
            raise UserError(
                f"two images have the key {key!r}: {items.where(first[key])} and {items.where(row)}; "
                f"rename or remove one"
            )
        if len(key.encode()) > MAX_KEY_BYTES:
            raise UserError(f"{items.where(row)}: the name makes a key of over {MAX_KEY_BYTES} bytes; shorten it")
