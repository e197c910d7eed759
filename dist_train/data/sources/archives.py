"""The places of all source images: archives and folders are listed, never unpacked.

Train is ``ILSVRC2012_img_train.tar`` (a tar of one tar per class, read by its headers only), a folder
with a folder per class, or a flat folder or tar of images that are named after their class. Val is
``ILSVRC2012_img_val.tar`` or a flat folder, or a folder with a folder per class (``labels`` says where
its labels come from). Both may be parquet files (``parquet``). ``photos`` decides which files are images; the account
lists every other file.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dist_train.data.account import Account
from dist_train.data.images.photos import File, is_system_file
from dist_train.data.sources.folders import class_folders, folder_photos, subfolders
from dist_train.data.sources.kaggle import refuse_root
from dist_train.data.sources.keys import unique_keys
from dist_train.data.sources.labels import folder_label, label_file, train_labels, train_name_label, val_labels
from dist_train.data.sources.parquet import Numbering, list_parquet
from dist_train.data.sources.paths import files_of
from dist_train.data.sources.synsets import Synsets
from dist_train.data.sources.tars import inner_photos, open_tar, tar_files, tar_photos
from dist_train.distributed.pool import progress_bar
from dist_train.errors import UserError
from dist_train.names import shown

TRAIN_REMEDY = "give ILSVRC2012_img_train.tar, a folder with one folder per class, or parquet files"
VAL_REMEDY = "give ILSVRC2012_img_val.tar with --devkit, a folder with one folder per class, or parquet files"


class Item(NamedTuple):
    """Describe a source image: its bytes lie at [offset, offset + size) of the file ``path``.

    Attributes:
        name: the path below the source, as the source has it (bytes that are not UTF-8 as surrogates).
        source: the archive and the name in it, for messages.
    """

    path: str
    offset: int
    size: int
    key: str
    label: int
    name: str
    source: str


class Parts(NamedTuple):
    """Hold the files that the images of a subset lie in, where there are several.

    Attributes:
        files: the files.
        file: int32 [N], number of each image's file.
        digest: hex sha256 over the footers of parquet files; "" where the images can be read in place.
    """

    files: tuple[Path, ...]
    file: npt.NDArray[np.int32]
    digest: str


@dataclass(frozen=True)
class Items:
    """Hold the N source images of a subset, as columns (1.28 million rows take about 150 MB).

    Attributes:
        source: the archive, or the folder.
        folder: whether it is a folder with a file per image.
        keys: N different keys (see ``keys``), sorted, so that the order does not depend on how the images came.
        names: N names below the source, "class/file" or "file".
        offset, size: int64 [N], place in the archive, in bytes (a folder's files: offset 0). In parquet files the
            offset is the row, and the size is 0, until ``spool`` knows both.
        label: int32 [N], index in the sorted classes.
        parts: where the images lie in several files; else None.
    """

    source: Path
    folder: bool
    keys: list[str]
    names: list[str]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    label: npt.NDArray[np.int32]
    parts: Parts | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hash(self) -> str:
        """16 hex digits of sha256 over keys, sizes and labels (not over the images' bytes, nor their places)."""
        content = hashlib.sha256("\n".join(self.keys).encode())
        for column in (self.size, self.label):
            content.update(column.tobytes())
        if self.parts:
            content.update(self.parts.digest.encode())
        return content.hexdigest()[:16]

    def where(self, row: int) -> str:
        """Return the source and the name of an image, for messages."""
        return f"{self.source}: {self.names[row]}"

    def __getitem__(self, row: int) -> Item:
        name = self.names[row]
        path = self.source / name if self.folder else self.source
        if self.parts:
            path = self.parts.files[self.parts.file[row]]
        place = int(self.offset[row]), int(self.size[row])
        label, where = int(self.label[row]), self.where(row)
        return Item(str(path), *place, self.keys[row], label, name, where)

    def select(self, rows: npt.NDArray[np.int64]) -> Items:
        """Return some of the images, in the order of ``rows``."""
        columns = (self.offset[rows], self.size[rows], self.label[rows])
        parts = self.parts and self.parts._replace(file=self.parts.file[rows])
        keys, names = ([column[row] for row in rows] for column in (self.keys, self.names))
        return Items(self.source, self.folder, keys, names, *columns, parts)


@dataclass(frozen=True)
class Scan:
    """Hold everything that there is to pack.

    Attributes:
        classes: the sorted wnids.
        subsets: the images of each subset.
        synsets: the names and the hierarchy of the classes, from the devkit.
        notes: lines to be printed, for example where the labels came from.
        account: all files of all sources.
    """

    classes: list[str]
    subsets: dict[str, Items]
    synsets: Synsets
    notes: tuple[str, ...] = ()
    account: Account = field(default_factory=Account)


def scan(train: Path, val: Path | None, devkit: Path | None, progress: bool = True) -> Scan:
    """List all source images; the classes are those of ``train``.

    Raises:
        UserError: a source is missing, damaged, of the wrong kind, or does not fit the others.
    """
    numbering, notes, account = Numbering(), list[str](), Account()
    listed = _list_source(train, "train", numbering, account, progress)
    labels = {"train": train_labels(train, listed.labelled)}
    listings = {"train": (train, listed)}
    classes = sorted(set(labels["train"]))
    file = label_file(devkit, val)
    if val is not None:
        listings["val"] = val, _list_source(val, "val", numbering, account, progress)
        by = "its parquet file" if listings["val"][1].parts else "its folder"
        labels["val"], used = val_labels(val, listings["val"][1].labelled, classes, file, by)
        notes.append(f"val: labels {used}")
    elif devkit is not None:
        raise UserError(f"--devkit {devkit}: it labels the validation images; give --val too, or leave it out")
    subsets = {name: _items(*listings[name], labels[name], classes) for name in listings}
    for name, (source, listing) in listings.items():
        if listing.passed_over:
            others = ", ".join(f"{count} of {split}" for split, count in listing.passed_over.items())
            notes.append(f"{name}: {source} has files of other splits, passed over: {others}")
    return Scan(classes, subsets, file.synsets if file else Synsets(), tuple(notes), account)


def hold_out(scanned: Scan, share: float, seed: int) -> Scan:
    """Move a share of each class's training images to ``val``.

    Raises:
        UserError: a class has only one image.
    """
    train, val = scanned.subsets["train"], np.zeros(len(scanned.subsets["train"]), bool)
    for label in range(len(scanned.classes)):
        rows = np.flatnonzero(train.label == label)
        if len(rows) < 2:
            raise UserError(f"{train.where(rows[0])}: the only image of its class; --val_share needs two at least")
        held = min(len(rows) - 1, max(1, round(share * len(rows))))
        val[np.random.RandomState([seed, label]).permutation(rows)[:held]] = True
    subsets = {"train": train.select(np.flatnonzero(~val)), "val": train.select(np.flatnonzero(val))}
    return replace(scanned, subsets=subsets)


class Listing(NamedTuple):
    """Hold the images of a subset before they have labels: names below the source, places in bytes, files.

    Attributes:
        passed_over: number of files of other splits, by split.
        flat: whether the folders in the names are no classes.
    """

    names: list[str]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    parts: Parts | None = None
    passed_over: dict[str, int] = {}  # noqa: RUF012  # never changed
    flat: bool = False

    @property
    def labelled(self) -> list[str]:
        """The parts of the names that give the class: "class/file" or "file"."""
        return [name.rpartition("/")[2] for name in self.names] if self.flat else self.names


def _list_source(path: Path, subset: str, numbering: Numbering, account: Account, progress: bool) -> Listing:
    refuse_root(path, f"--{subset}")
    files, passed_over = files_of(path, subset)
    if files and files[0].suffix == ".parquet":
        images = list_parquet(files, subset, numbering, progress)
        account.taken += len(images.names)
        parts = Parts(images.files, images.file, images.digest)
        return Listing(images.names, images.row, np.zeros_like(images.row), parts, passed_over)
    if path.is_dir() and not files:
        return _listing([_list_folder(path, subset, account, progress)], [], passed_over, False)
    tars = [_list_tar(file, subset, account, progress) for file in files or [path]]
    flat = not all(per_class for _, per_class in tars)
    return _listing([photos for photos, _ in tars], [] if files == [path] else files, passed_over, flat)


def _listing(photos: list[list[File]], files: list[Path], passed_over: dict[str, int], flat: bool) -> Listing:
    """Return the listing of the photos in each of ``files``, or in the source itself where ``files`` is empty."""
    every = [photo for in_file in photos for photo in in_file]
    offset = np.fromiter((photo.offset for photo in every), np.int64, len(every))
    size = np.fromiter((photo.size for photo in every), np.int64, len(every))
    number = np.repeat(np.arange(len(photos), dtype=np.int32), [len(in_file) for in_file in photos])
    parts = Parts(tuple(files), number, "") if files else None
    return Listing([photo.name for photo in every], offset, size, parts, passed_over, flat)


def _items(source: Path, listed: Listing, labels: list[str], classes: list[str]) -> Items:
    position = {wnid: label for label, wnid in enumerate(classes)}
    label = np.fromiter((position[wnid] for wnid in labels), np.int32, len(labels))
    folder = source.is_dir() and listed.parts is None
    groups = [folder_label(name) or "" for name in listed.labelled]
    keys = unique_keys(groups, _unique_names(listed))
    items = Items(source, folder, keys, listed.names, listed.offset, listed.size, label, listed.parts)
    return items.select(np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64))


def _unique_names(listed: Listing) -> list[str]:
    """Return the names; a name that several images have gets the file's name and the place in it."""
    count = Counter(listed.names)
    if len(count) == len(listed.names) or listed.parts is None:
        return listed.names
    files = [listed.parts.files[number].name for number in listed.parts.file]
    places = zip(listed.names, files, listed.offset, strict=True)
    return [name if count[name] == 1 else f"{file}:{place}:{name}" for name, file, place in places]


# ---- listing


def _list_folder(path: Path, subset: str, account: Account, progress: bool) -> list[File]:
    """Return the images of a folder with a folder per class, or with images alone."""
    folders = subfolders(path)
    if not folders:
        flat = folder_photos(path, account)
        if not flat and subset == "val":
            raise UserError(f"{path}: holds no validation image; {VAL_REMEDY}")
        if flat:
            return flat
    photos: list[File] = []
    with progress_bar(len(folders), f"scan {subset}", "class", progress) as bar:
        for _, of_class in class_folders(path, f"--{subset}", account):
            photos += of_class
            bar.update()
    return photos


def _list_tar(path: Path, subset: str, account: Account, progress: bool) -> tuple[list[File], bool]:
    """Return the images of a tar, and whether they lie in an inner tar per class, which is named after the class."""
    remedy = TRAIN_REMEDY if subset == "train" else VAL_REMEDY
    with open_tar(path, remedy) as file, _scan_bar(file, subset, progress) as bar:
        files = tar_files(file, str(path), account, bar)
        tars = sorted(member for member in files if is_class_tar(member.name))
        others = [member for member in files if not is_class_tar(member.name)]
        photos = tar_photos(file.fileno(), others, str(path), account)
        _check_tar(path, subset, remedy, tars, photos)
        if tars:
            stems = Counter(Path(inner.name).stem for inner in tars)
            for inner in tars:
                photos += inner_photos(file, inner, str(path), account, stems[Path(inner.name).stem] > 1)
                bar.update(inner.offset + inner.size - bar.n)
        bar.update((bar.total or 0) - bar.n)
    return photos, bool(tars)


def _check_tar(path: Path, subset: str, remedy: str, tars: list[File], photos: list[File]) -> None:
    """Check that a tar holds the kind of files that its subset has.

    Raises:
        UserError: it holds nothing, both kinds of files, or the kind of the other subset.
    """
    if subset == "val":
        if tars:
            guess = "this looks like the training archive"
            raise UserError(f"{path}: holds '{shown(tars[0].name)}': {guess}; as --val {remedy}")
        if not photos:
            raise UserError(f"{path}: holds no validation image; {remedy}")
        return
    if not tars and not photos:
        raise UserError(f"{path}: holds no class; {remedy}")
    if photos and (tars or not train_name_label(photos[0].name)):
        val = Path(photos[0].name).name.startswith("ILSVRC2012_val_")
        guess = "this looks like the validation archive" if val else "not one tar per class"
        raise UserError(f"{path}: holds '{shown(photos[0].name)}': {guess}; as --train {remedy}")


def is_class_tar(name: str) -> bool:
    """Tell whether a file in a training archive is a class's tar."""
    return name.endswith(".tar") and not is_system_file(Path(name).name)


def _scan_bar(file: io.FileIO, subset: str, show: bool) -> tqdm[Any]:
    return progress_bar(os.fstat(file.fileno()).st_size, f"scan {subset}", "B", show)
