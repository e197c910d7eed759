"""Features in parquet files: a column of lists of numbers, and a column of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.config import FeaturesConfig
from dist_train.data.features.arrays import PIECE, Array, RawFeatures
from dist_train.data.sources.parquet import open_parquet, pyarrow_parquet, reading
from dist_train.errors import UserError


def read_parquet(path: Path, options: FeaturesConfig) -> RawFeatures:
    """Read the labels of a parquet file, or of all in a folder in the order of their names, and how its activations
    are read.

    Raises:
        UserError: pyarrow is not installed; a file is damaged, or lacks a column.
    """
    files = parquet_files(path)
    labels, names, count = [], None, 0
    dim, dtype = _form(files[0], options)
    for file in files:
        if _form(file, options) != (dim, dtype):
            raise UserError(f"{file}: its activations are of another length or type than those of {files[0]}")
        source = open_parquet(pyarrow_parquet(), file)
        names = names or _names(source, options.labels)
        with reading(file):
            column = source.read(columns=[options.labels])[options.labels]
        if column.null_count:
            raise UserError(f"{file}: row {column.is_null().to_pylist().index(True)} has no label; leave it out")
        labels += column.to_pylist()
        count += len(column)

    def pieces() -> Iterator[Array]:
        for file in files:
            yield from _pieces(file, options.activations, dim)

    return RawFeatures((count, dim), dtype, pieces, np.asarray(labels), names)


def parquet_files(path: Path) -> list[Path]:
    """Return a file itself, or the parquet files of a folder by name.

    Raises:
        UserError: the folder has none.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds no .parquet file; give a file, or a folder of them")
    return files


def _form(file: Path, options: FeaturesConfig) -> tuple[int, np.dtype[Any]]:
    """Return the length of the lists of activations, that of the first row where the type does not say it, and the
    type of their values."""
    import pyarrow.types as types

    source = open_parquet(pyarrow_parquet(), file)
    columns = {field.name: field.type for field in source.schema_arrow}
    for key in (options.activations, options.labels):
        if key not in columns:
            has = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
            raise UserError(
                f"{file}: has no column {key!r} (it has {has}); name it by features.activations and features.labels "
                "(of split: --activations, --labels)"
            )
    kind = columns[options.activations]
    if types.is_fixed_size_list(kind):
        dim = kind.list_size
    elif types.is_list(kind) or types.is_large_list(kind):
        with reading(file):
            first = next(source.iter_batches(1, columns=[options.activations]), None)
        dim = len(first.column(0)[0].as_py() or ()) if first is not None else 0
    else:
        raise UserError(f"{file}: column {options.activations!r} is {kind}; give lists of numbers")
    try:
        return dim, np.dtype(kind.value_type.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        return dim, np.dtype(object)


def _names(source: Any, column: str) -> list[str] | None:
    """Return the names of numbered classes that Hugging Face's datasets writes into a file."""
    try:
        features = json.loads((source.metadata.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (ValueError, KeyError, TypeError):
        return None


def _pieces(file: Path, column: str, dim: int) -> Iterator[Array]:
    source, done = open_parquet(pyarrow_parquet(), file), 0
    batches = source.iter_batches(max(1, PIECE // max(dim, 1)), columns=[column])
    while True:
        with reading(file):
            batch = next(batches, None)
        if batch is None:
            return
        rows = batch.column(0)
        lengths = rows.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
        if (lengths != dim).any():
            row = int((lengths != dim).argmax())
            raise UserError(
                f"{file}: row {done + row} has {max(int(lengths[row]), 0)} activations, others have {dim}; leave it out"
            )
        yield rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), dim)
        done += len(rows)
