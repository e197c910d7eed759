"""Features in NumPy's files: an .npz of activations and labels, or an .npy of activations beside its labels.

Rows are read in order, in pieces, so that a file may be larger than the memory. Pickled objects are never loaded.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dist_train.config import FeaturesConfig
from dist_train.errors import UserError
from dist_train.files import read_lines

PIECE = 2**24  # values of a piece: 64 MB as float32
REMEDY = "write it with numpy.savez(FILE, activations=..., labels=...)"

NAMES = "a list of names, one a line"

Array = npt.NDArray[Any]


class Header(NamedTuple):
    """Hold what the header of an array says; ``columns_first`` is Fortran's order."""

    shape: tuple[int, ...]
    columns_first: bool
    dtype: np.dtype[Any]


class RawFeatures(NamedTuple):
    """Hold what a file of features has.

    Attributes:
        shape: of the activations.
        dtype: of the activations.
        pieces: yields the activations [n, D] in order.
        labels: [N], texts or numbers.
        names: names of numbered classes, where the file has them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Callable[[], Iterator[Array]]
    labels: Array
    names: list[str] | None = None


def read_npz(path: Path, options: FeaturesConfig) -> RawFeatures:
    """Read the labels of an .npz, and where its activations lie.

    Raises:
        UserError: it is damaged, or lacks an array.
    """
    with reading(path), np.load(path, allow_pickle=False) as arrays:
        for key in (options.activations, options.labels):
            if key not in arrays.files:
                raise UserError(
                    f"{path}: has no array {key!r} (it has {', '.join(arrays.files)}); name it by "
                    "features.activations and features.labels (of split: --activations, --labels)"
                )
        labels = arrays[options.labels]
        names = [str(name) for name in arrays["classes"]] if "classes" in arrays.files else None

    @contextmanager
    def opened() -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(path) as archive, archive.open(f"{options.activations}.npy") as file:
            yield file

    return _streamed(path, opened, labels, names)


def read_npy(path: Path, options: FeaturesConfig) -> RawFeatures:
    """Read the labels beside an .npy, and where its activations lie.

    Raises:
        UserError: a file is damaged, or there are no labels, or two files of them.
    """
    beside = [path.with_suffix(f".labels.{ending}") for ending in ("npy", "txt")]
    there = [file for file in beside if file.is_file()]
    if len(there) != 1:
        names = f"{beside[0].name} or {beside[1].name}"
        raise UserError(f"{path}: its labels must lie beside it, in {names}; " + (
            "remove one of the two" if there else "write one of them"))  # fmt: skip
    if there[0].suffix == ".txt":
        labels = np.array(read_lines(there[0], NAMES), dtype=np.str_)
    else:
        with reading(there[0]):
            labels = np.load(there[0], allow_pickle=False)
    return _streamed(path, lambda: path.open("rb"), labels, None)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what NumPy and zipfile raise on a damaged file into an error of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything: OSError, ValueError, BadZipFile, zlib, tokenize
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "allow_pickle" in reason:
            reason = "it holds pickled objects, or is no file of NumPy; pickles are never loaded"
        raise UserError(f"{path}: cannot be read as NumPy's ({reason}); {REMEDY}") from None


def _streamed(
    path: Path, opened: Callable[[], AbstractContextManager[IO[bytes]]], labels: Array, names: list[str] | None
) -> RawFeatures:
    """Return what a file holds whose activations are the .npy that ``opened`` opens."""
    with reading(path), opened() as file:
        header = _read_header(file)

    def pieces() -> Iterator[Array]:
        with opened() as file:
            with reading(path):
                _read_header(file)
            yield from _pieces(path, file, header)

    return RawFeatures(header.shape, header.dtype, pieces, labels, names)


def _read_header(file: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return Header(*reader(file))


def _pieces(path: Path, file: IO[bytes], header: Header) -> Iterator[Array]:
    """Yield the rows [n, D] that follow a header."""
    count, dim = header.shape
    step = max(1, PIECE // max(dim, 1))
    if header.columns_first:  # a column lies after another, so that there are no rows before the end
        with reading(path):
            columns = _read_values(file, header.dtype, (dim, count))
        yield from (columns[:, first : first + step].T for first in range(0, count, step))
        return
    for first in range(0, count, step):
        with reading(path):
            rows = _read_values(file, header.dtype, (min(step, count - first), dim))
        yield rows


def _read_values(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, int]) -> Array:
    size = math.prod(shape) * dtype.itemsize
    content = file.read(size)
    if len(content) < size:
        raise ValueError("it ends before its last row")
    return np.frombuffer(content, dtype).reshape(shape)
