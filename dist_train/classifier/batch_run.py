"""Answers for a folder of photos that go to files: kept as they come, so that a run that was killed goes on.

A run keeps a journal beside what it writes: a line of JSON for each answer, and for each photo that is about to be
moved. Files are written, and photos are moved, once all answers are there; then the journal is removed.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from dist_train.classifier.answer import Answer, Prediction
from dist_train.classifier.reading import Source
from dist_train.errors import UserError
from dist_train.extras import needs_extra
from dist_train.files import atomic_write, write_text
from dist_train.names import spelt, utf8


class Journal:
    """The answers and moves of a run, in a file that outlives the process.

    Attributes:
        answers: by the name of the photo, in the order in which they came.
        moves: where each photo goes, by its name, that was moved or was about to be.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        """Begin a journal, or go on with the journal of an earlier process.

        Args:
            path: its file.
            run: what the answers depend on: the model and the options.

        Raises:
            UserError: the file is the journal of another run or of a process at work, or cannot be written.
        """
        self.path, self.answers, self.moves = path, dict[str, Answer](), dict[str, str]()
        self._stamps: dict[str, list[int]] = {}
        try:
            self._file = path.open("a", encoding="utf-8")
            _lock(self._file, path)
            lines = _whole_lines(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; give a place that can be written") from None
        if not lines:
            self._write({"run": run})
        elif lines[0].get("run") != run:
            raise UserError(f"{path}: is left over from a run with another model or other options; repeat that run, or "
                            f"remove the file")  # fmt: skip
        for line in lines[1:]:
            if "moved" in line:
                self.moves[line["moved"]] = line["to"]
            else:
                predictions = tuple(Prediction(**entry) for entry in line["answer"].pop("predictions"))
                self.answers[line["answer"]["photo"]] = Answer(predictions, **line["answer"])
                self._stamps[line["answer"]["photo"]] = line["stamp"]

    def add(self, answer: Answer) -> None:
        """Note an answer."""
        stamp = self._stamps[answer.photo] = _stamp(answer.photo)
        self.answers[answer.photo] = answer
        self._write({"answer": asdict(answer), "stamp": stamp})

    def add_move(self, photo: str, to: Path) -> None:
        """Note that a photo is about to be moved; on disk when this returns."""
        self.moves[photo] = str(to)
        self._write({"moved": photo, "to": str(to)})

    def has(self, name: str) -> bool:
        """Return whether a photo has its answer, and is the file that it was then; what is no file never has."""
        stamp = _stamp(name)
        return bool(stamp) and self._stamps.get(name) == stamp

    def without_answers(self, photos: Iterable[Source]) -> Iterator[Source]:
        """Yield the photos that have no answer yet. A photo that was moved is not missing for that, nor is a folder
        empty, or a pattern without a match, from which all photos were moved."""
        for name, photo in photos:
            moved = isinstance(photo, UserError) and any(_means(name, photo) for photo in self.moves)
            if not moved and not self.has(name):
                yield name, photo

    def remove(self) -> None:
        """Remove the file: the run is done."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()  # to the kernel, which outlives the process
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}; make room, and the same command goes on") from None


def _lock(file: IO[str], path: Path) -> None:
    """Hold a journal for this process as long as it is open; where the file system has no locks, do nothing.

    Raises:
        UserError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path}: another process writes these answers; wait for it, or write elsewhere") from None
    except OSError:
        return


def _means(word: str, photo: str) -> bool:
    """Return whether a word of the command line means a photo: by its path, a folder above it, or a pattern."""
    path = Path(photo)
    return Path(word) in (path, *path.parents) or fnmatch(photo, str(Path(word)))


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal, and cut off a last line that was not written whole."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    try:
        lines = [json.loads(line) for line in data[:end].splitlines()]
    except ValueError:
        lines = [{}]
    return [line if isinstance(line, dict) else {} for line in lines]


def _stamp(name: str) -> list[int]:
    """Return size and time of change of a file, by which it is known again; an empty list where there is none."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


# Files.


def write_csv(path: Path, answers: Sequence[Answer], topk: int) -> None:
    """Write a row for each photo, whole or not at all. The table has the columns of ``rows``."""
    out = io.StringIO()
    table = rows(answers, topk)
    writer = csv.DictWriter(out, list(table), lineterminator="\n")
    writer.writeheader()
    for values in zip(*table.values(), strict=True):
        row = dict(zip(table, values, strict=True))
        writer.writerow({key: "" if value is None else _text(value) for key, value in row.items()})
    write_text(path, out.getvalue())


def write_parquet(path: Path, answers: Sequence[Answer], topk: int) -> None:
    """Write the same rows as a parquet file.

    Raises:
        UserError: pyarrow is not installed.
    """
    with needs_extra("parquet", path):
        import pyarrow
        import pyarrow.parquet
    kinds = {bool: pyarrow.bool_(), float: pyarrow.float64(), str: pyarrow.string()}
    columns = {name: pyarrow.array(values, kinds[_kind(name)]) for name, values in rows(answers, topk).items()}
    with atomic_write(path) as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


def rows(answers: Sequence[Answer], topk: int) -> dict[str, list[Any]]:
    """Return the table of answers, {column: a value for each photo}: ``photo``, ``class``, ``wnid``, ``probability``,
    ``sure``, ``familiarity``, ``fault``, and for further classes ``class_2``, ``probability_2``, ...; None where a
    photo has none."""
    table: dict[str, list[Any]] = {"photo": [spelt(answer.photo) for answer in answers]}
    for place in range(max(1, topk)):
        end = f"_{place + 1}" if place else ""
        best = [answer[place] if place < len(answer) else None for answer in answers]
        table[f"class{end}"] = [None if entry is None else entry.name for entry in best]
        if not place:
            table["wnid"] = [None if entry is None else entry.wnid for entry in best]
        table[f"probability{end}"] = [None if entry is None else entry.probability for entry in best]
        if not place:
            table["sure"] = [None if answer.fault else answer.sure for answer in answers]
            table["familiarity"] = [None if answer.fault else answer.familiarity for answer in answers]
            table["fault"] = [utf8(answer.fault) or None for answer in answers]
    return table


def _kind(column: str) -> type:
    return bool if column == "sure" else float if column.startswith(("probability", "familiarity")) else str


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
