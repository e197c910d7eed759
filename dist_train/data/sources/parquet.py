"""Image sets in parquet files, as Hugging Face distributes them.

They have a column ``image`` of {bytes, path} and a column ``label`` of numbers, whose names the schema has
(``datasets.ClassLabel``). In ``imagenet-1k`` these names are English words, and the wnid stands at the end of the
image's path: there the wnid is the class, and number and wnid have to agree in all files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dist_train.data.sources.labels import train_name_label
from dist_train.distributed.pool import progress_bar
from dist_train.errors import UserError
from dist_train.extras import needs_extra
from dist_train.names import class_name, shown

REMEDY = "download it again"
COLUMNS_REMEDY = "give files with the columns image (bytes and path) and label (a number), as Hugging Face has them"
BATCH_ROWS = 64  # images in memory at a time


class ParquetImages(NamedTuple):
    """Hold the N images of a subset.

    Attributes:
        files: the parquet files.
        names: N names "class/file"; the class is a wnid, or the schema's name.
        file, row: N places: number of the file, row in it.
        digest: hex sha256 over the files' sizes and footers, which describe the content; the images are not read.
    """

    files: tuple[Path, ...]
    names: list[str]
    file: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    digest: str


@dataclass
class Numbering:
    """Record which number means which wnid, as the rows of all files say. Train and val share a numbering."""

    wnids: dict[int, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def note(self, number: int, wnid: str, where: str) -> None:
        """Note a row, and compare it with the rows before it.

        Raises:
            UserError: the number meant another wnid, or the wnid had another number.
        """
        known, other = self.wnids.setdefault(number, wnid), self.numbers.setdefault(wnid, number)
        if known != wnid:
            raise UserError(f"{where}: is {wnid!r} by its name and {known!r} by its label {number}; {REMEDY}")
        if other != number:
            raise UserError(f"{where}: {wnid!r} has the label {number} here and {other} elsewhere; {REMEDY}")


def list_parquet(files: list[Path], subset: str, numbering: Numbering, progress: bool) -> ParquetImages:
    """List the images of a subset; only the columns of paths and labels are read.

    Raises:
        UserError: pyarrow is not installed; a file is damaged or has other columns; number and wnid of an image
            disagree; an image has no class.
    """
    parquet = pyarrow_parquet()
    rows: list[tuple[int, int, str | None, int]] = []
    names: list[str] = []
    with progress_bar(len(files), f"scan {subset}", "file", progress) as bar:
        for number, file in enumerate(files):
            source = open_parquet(parquet, file)
            own = _class_names(source, file)
            if number and own != names:
                raise UserError(f"{file}: names other classes than {files[0]}; give the files of one data set")
            names = own
            rows += [(number, row, *entry) for row, entry in enumerate(_paths_and_labels(source, file))]
            bar.update()
    if not rows:
        raise UserError(f"{files[0]}: holds no image; {COLUMNS_REMEDY}")
    classes = _classes(files, rows, names, numbering)
    file_numbers = np.array([file for file, *_ in rows], np.int32)
    places = np.array([row for _, row, *_ in rows], np.int64)
    return ParquetImages(tuple(files), _names(files, rows, classes), file_numbers, places, _digest(files))


def _classes(
    files: list[Path], rows: list[tuple[int, int, str | None, int]], names: list[str], numbering: Numbering
) -> list[str]:
    """Return the class of each row: the wnid of its path, or of other rows with its number; else the schema's name."""
    for number, name in enumerate(names):
        if re.fullmatch(r"n\d{8}", name):
            numbering.note(number, name, f"{files[0]}: the schema")
    for file, row, path, label in rows:
        if wnid := train_name_label(path or ""):
            numbering.note(label, wnid, f"{files[file]}: row {row} ({shown(path)})")
    meaning = numbering.wnids or {number: class_name(name) for number, name in enumerate(names)}
    if len(set(meaning.values())) < len(meaning):
        twice = Counter(meaning.values()).most_common(1)[0][0]
        raise UserError(f"{files[0]}: two labels are called {twice!r}; give files whose classes have different names")
    classes = []
    for file, row, path, label in rows:
        if label not in meaning:
            known = "the schema names no classes" if not meaning else f"known are {min(meaning)} to {max(meaning)}"
            raise UserError(
                f"{files[file]}: row {row} ({shown(path)}) has the label {label}, whose class is unknown ({known}, "
                f"and its name has no wnid); leave out the files of images without labels, as those of the test set"
            )
        classes.append(meaning[label])
    return classes


def _names(files: list[Path], rows: list[tuple[int, int, str | None, int]], classes: list[str]) -> list[str]:
    """Return class and file name of each image; an image without a path gets the parquet file's name and its row."""
    stems = ((path or "").rpartition("/")[2] or f"{files[file].stem}-{row}" for file, row, path, _ in rows)
    return [f"{name}/{stem}" for name, stem in zip(classes, stems, strict=True)]


# ---- reading


def pyarrow_parquet() -> Any:
    """Import ``pyarrow.parquet``.

    Raises:
        UserError: pyarrow is not installed.
    """
    with needs_extra("parquet", "reading parquet files"):
        import pyarrow.parquet
    return pyarrow.parquet


def image_bytes(file: Path, threads: int) -> Iterator[list[Any]]:
    """Read the images of a file in order, as lists of buffers (``pyarrow.Buffer``), in one pass over it.

    Raises:
        UserError: the file is damaged, or a row has no bytes.
    """
    parquet = pyarrow_parquet()
    import pyarrow.compute as compute

    done = 0
    with reading(file):
        source = open_parquet(parquet, file)
        for batch in source.iter_batches(BATCH_ROWS, columns=["image.bytes"], use_threads=threads > 1):
            images = compute.struct_field(batch.column(0), "bytes")
            if images.null_count:
                row = done + images.is_null().to_pylist().index(True)
                raise UserError(f"{file}: row {row} has no bytes, only the path of an image; give files that hold the "
                                "images (datasets: embed_external_files=True)")  # fmt: skip
            done += len(images)
            yield [image.as_buffer() for image in images]


class reading:
    """Turn what pyarrow raises on a damaged file within ``with reading(file)`` into an error of one line."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import pyarrow

        if isinstance(error, (pyarrow.ArrowException, OSError)):
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.file}: cannot be read as parquet ({reason}); {REMEDY}") from None


def open_parquet(parquet: Any, file: Path) -> Any:
    """Open a file as a ``pyarrow.parquet.ParquetFile``.

    Args:
        parquet: what ``pyarrow_parquet`` returns.

    Raises:
        UserError: it is damaged.
    """
    with reading(file):
        source = parquet.ParquetFile(file, page_checksum_verification=True, pre_buffer=False, buffer_size=1 << 20)
    return source


def _class_names(source: Any, file: Path) -> list[str]:
    """Return the classes' names by their numbers, from the schema; empty where it has no names.

    Raises:
        UserError: the file has other columns.
    """
    import pyarrow.types as types

    schema = source.schema_arrow
    columns = {field.name: field.type for field in schema}
    image, label = columns.get("image"), columns.get("label")
    if (
        image is None or label is None or not types.is_struct(image) or not types.is_integer(label)
        or not {"bytes", "path"} <= {image.field(n).name for n in range(image.num_fields)}
    ):  # fmt: skip
        has = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(f"{file}: has the columns {has}; {COLUMNS_REMEDY}")
    try:
        features = json.loads((source.metadata.metadata or {}).get(b"huggingface", b"{}"))
        return [str(name) for name in features.get("info", {}).get("features", {}).get("label", {}).get("names", [])]
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{file}: its entry 'huggingface' is not as datasets writes it; {REMEDY}") from None


def _paths_and_labels(source: Any, file: Path) -> Iterator[tuple[str | None, int]]:
    import pyarrow.compute as compute

    with reading(file):
        table = source.read(columns=["image.path", "label"])
        paths = compute.struct_field(table["image"], "path").to_pylist()
        labels = table["label"].to_pylist()
    for row, (path, label) in enumerate(zip(paths, labels, strict=True)):
        if label is None:
            raise UserError(f"{file}: row {row} ({shown(path)}) has no label; {REMEDY}")
        yield path, label


def _digest(files: list[Path]) -> str:
    """Return the sha256 over each file's size and footer, whose length stands in the four bytes before the last four
    ("PAR1")."""
    content = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            size = source.seek(0, 2)
            source.seek(size - 8)
            footer = int.from_bytes(source.read(4), "little")
            source.seek(size - 8 - footer)
            content.update(f"{size} ".encode() + source.read(footer))
    return content.hexdigest()
