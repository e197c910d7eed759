"""Features from elsewhere: activations of images that another program computed, with labels, in place of shards.

Each file is read in pieces, and its values are checked on the way. Its content decides its hash, not its path.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from dist_train.config import FeaturesConfig
from dist_train.data.features.arrays import NAMES, Array, RawFeatures, read_npy, read_npz
from dist_train.data.features.parquet import parquet_files, read_parquet
from dist_train.data.sources.synsets import Synsets
from dist_train.errors import UserError, counted
from dist_train.files import file_sha256, read_lines
from dist_train.names import class_name

Reader: TypeAlias = Callable[[Path, FeaturesConfig], RawFeatures]

_LARGEST = float(np.finfo(np.float16).max)
_INEXACT = 0.01  # share of a row's length that rounding to float16 may change


@dataclass(frozen=True)
class FeatureSubset:
    """Hold the features of training or of validation images.

    Attributes:
        name: "train" or "val".
        path: the file or folder.
        labels: int32 [N], positions in ``FeatureSet.classes``.
        dim: length of an activation.
        digest: hex sha256 of the content.
        scale: factor of all values.
    """

    name: str
    path: Path
    labels: npt.NDArray[np.int32]
    dim: int
    digest: str
    scale: float
    pieces: Callable[[], Iterator[Array]]

    @property
    def source(self) -> str:
        """The path, for messages."""
        return str(self.path)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self) -> Iterator[npt.NDArray[np.float16]]:
        """Yield all activations in order, scaled: float16 [n, dim].

        Raises:
            UserError: a value is not finite or does not fit float16, or the file is damaged.
        """
        done = 0
        for piece in self.pieces():
            yield self._half(piece, done)
            done += len(piece)

    def _half(self, piece: Array, first: int) -> npt.NDArray[np.float16]:
        """Return activations as they are stored; ``first`` is the number of their first row."""
        scaled = piece if self.scale == 1 else np.multiply(piece, self.scale, dtype=np.float64)
        if not (finite := np.isfinite(piece).all(1)).all():
            row = int(np.argmin(finite))
            raise UserError(
                f"{self.path}: row {first + row} has a value that is not a finite number; leave it out, or compute it "
                "again"
            )
        with np.errstate(over="ignore"):
            stored = scaled.astype(np.float16)
            before, after = (np.linalg.norm(array.astype(np.float64), axis=1) for array in (scaled, stored))
        off = ~(np.abs(after - before) <= _INEXACT * before)  # infinity and NaN count as off
        if off.any():
            row = int(np.argmax(off))
            largest = float(np.abs(piece[row].astype(np.float64)).max())
            factor = 2.0 ** math.floor(-math.log2(largest))  # a power of two: it changes no digit
            raise UserError(
                f"{self.path}: row {first + row}, whose largest value is {largest:.3g}, does not fit float16, as which "
                f"activations are stored; give --features.scale {factor}"
            )
        return stored


@dataclass(frozen=True)
class FeatureSet:
    """Hold the features of a run, as ``ShardSet`` holds its images.

    Attributes:
        classes: the sorted names of all labels.
        hash: identifies the content of all files.
    """

    kind: ClassVar[Literal["features"]] = "features"
    classes: tuple[str, ...]
    subsets: dict[str, FeatureSubset]
    hash: str
    synsets: Synsets = field(default_factory=Synsets)

    def __getitem__(self, subset: str) -> FeatureSubset:
        return self.subsets[subset]

    @property
    def dim(self) -> int:
        """Length of an activation."""
        return self.subsets["train"].dim


def open_features(options: FeaturesConfig) -> FeatureSet:
    """Open the files of features, and read their labels.

    Raises:
        UserError: a file is missing or damaged, of another form, or does not fit the other.
    """
    paths = {"train": options.train, "val": options.val}
    raw = {name: read_raw(path, f"features.{name}={path}", options) for name, path in paths.items()}
    names = {name: _label_names(paths[name], file, options) for name, file in raw.items()}
    digests = {name: _digest(path, options) for name, path in paths.items()}
    if digests["train"] == digests["val"]:
        raise UserError(f"features.val={options.val}: has the content of features.train; give other images' features")
    dims = {name: file.shape[1] for name, file in raw.items()}
    if dims["train"] != dims["val"]:
        raise UserError(
            f"features.val={options.val}: has {counted(dims['val'], 'activation')} a row, features.train has "
            f"{dims['train']}; "
            "give features of the same network"
        )
    classes = sorted({*names["train"], *names["val"]})
    number = {name: place for place, name in enumerate(classes)}
    subsets = {
        name: FeatureSubset(
            name, paths[name], np.array([number[label] for label in names[name]], np.int32), dims[name], digests[name],
            options.scale, file.pieces,
        )
        for name, file in raw.items()
    }  # fmt: skip
    content = [classes, digests, options.activations, options.labels]
    return FeatureSet(tuple(classes), subsets, hashlib.sha256(json.dumps(content).encode()).hexdigest())


def label_classes(path: Path, options: FeaturesConfig) -> list[str]:
    """Return the sorted classes of a file of features.

    Raises:
        UserError: see ``open_features``.
    """
    return sorted(set(_label_names(path, read_raw(path, f"features={path}", options), options)))


def reader_of(path: Path, named: str) -> Reader:
    """Return what reads a file of features, by the ending of its name.

    Args:
        named: the option that names it, with its value, for messages.

    Raises:
        UserError: there is no such file, or its name has another ending.
    """
    folder = path.is_dir()
    if not folder and not path.is_file():
        raise UserError(f"{named}: no such file; give an .npz, .npy or .parquet")
    readers: dict[str, Reader] = {".npz": read_npz, ".npy": read_npy, ".parquet": read_parquet}
    reader = read_parquet if folder else readers.get(path.suffix)
    if reader is None:
        raise UserError(f"{named}: not a file of features by its name; give an .npz, .npy or .parquet")
    return reader


def read_raw(path: Path, named: str, options: FeaturesConfig) -> RawFeatures:
    """Read a file by the ending of its name, and check the form of what it holds.

    Args:
        named: as ``reader_of`` has it.

    Raises:
        UserError: it is missing or damaged, or of another form.
    """
    raw = reader_of(path, named)(path, options)
    if len(raw.shape) != 2 or raw.dtype.kind != "f" or not math.prod(raw.shape):
        raise UserError(
            f"{path}: its activations are {list(raw.shape)} {raw.dtype}; give at least one row [N, D] of floats"
        )
    if raw.labels.shape != raw.shape[:1]:
        raise UserError(
            f"{path}: has {counted(raw.shape[0], 'row')} of activations, but labels {list(raw.labels.shape)}; give "
            "each a label"
        )
    return raw


def _label_names(path: Path, raw: RawFeatures, options: FeaturesConfig) -> list[str]:
    """Return the name of each row's class.

    Raises:
        UserError: a label is no class name, or a number without a name.
    """
    kind = raw.labels.dtype.kind
    if kind == "S":
        try:
            texts, places = np.unique(np.char.decode(raw.labels, "utf-8"), return_inverse=True)
        except UnicodeDecodeError:
            raise UserError(f"{path}: its labels are not UTF-8; write them as texts") from None
    elif kind in "Uiu":
        texts, places = np.unique(raw.labels, return_inverse=True)
    else:
        raise UserError(f"{path}: its labels are {raw.labels.dtype}; give names of classes, or whole numbers")
    values = texts.tolist() if kind in "US" else _named(path, texts, raw.names, options.classes)
    if kind in "US" and options.classes:
        raise UserError(f"features.classes={options.classes}: labels of {path} are names already; leave it out")
    try:
        names = [class_name(value) for value in values]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return [names[place] for place in places]


def _named(path: Path, numbers: Array, own: list[str] | None, file: Path | None) -> list[str]:
    """Return the names of these numbers, by ``features.classes`` or by the file of features itself."""
    names = read_lines(file, NAMES) if file else own
    if names is None:
        raise UserError(
            f"{path}: its labels are numbers; name them by features.classes (of split: --classes), a text file of names"
        )
    wrong = [int(number) for number in numbers if not 0 <= number < len(names)]
    if wrong:
        raise UserError(
            f"{path}: has the label {wrong[0]}, but {file or 'it'} names {counted(len(names), 'class')}, from 0 on"
        )
    return [names[int(number)] for number in numbers]


def _digest(path: Path, options: FeaturesConfig) -> str:
    """Return the sha256 over all files that decide the features of a subset."""
    files = parquet_files(path) if path.suffix == ".parquet" or path.is_dir() else [path]
    beside = [path.with_suffix(f".labels.{ending}") for ending in ("npy", "txt")] if path.suffix == ".npy" else []
    files = [*files, *(file for file in (*beside, options.classes) if file is not None and file.is_file())]
    return hashlib.sha256(json.dumps([file_sha256(file) for file in files]).encode()).hexdigest()
