"""Photos sorted into folders by what a model says of them: moved, or linked to."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from dist_train.classifier.answer import Answer
from dist_train.classifier.batch_run import Journal
from dist_train.errors import UserError, counted

UNSURE = "not sure"
"""The folder of photos for which the model is not sure."""
_MAX_BYTES = 255  # of the name of a file or folder, on all common file systems


def check_folders(classes: Iterable[str]) -> None:
    """Check, before any work, that each class can have a folder of its own.

    Raises:
        UserError: the name of a class is that of ``UNSURE``'s folder, or longer than a folder's may be.
    """
    for name in classes:
        if name == UNSURE:
            raise UserError(f"class {name!r}: has the name of the folder for photos that the model is not sure of; "
                            f"rename the class first")  # fmt: skip
        length = len(os.fsencode(name))
        if length > _MAX_BYTES:
            raise UserError(f"class {name!r}: its name has {length} bytes, and that of a folder at most {_MAX_BYTES}; "
                            f"rename the class first")  # fmt: skip


def sort_photos(journal: Journal, folder: Path, move: bool) -> tuple[Counter[str], list[tuple[str, str]]]:
    """Sort all photos of a journal into a folder for each class, and one for those that the model is not sure of.

    Nothing is overwritten: where a name is taken by another photo, a number is added. A photo without an answer stays
    where it is. A photo that an earlier process has sorted counts and is left alone.

    Args:
        journal: has the answers, and notes each move before it is made.
        folder: gets the folders.
        move: whether photos are moved, or linked to.

    Returns:
        How many photos are in each folder, and (photo, reason) of each photo that could not be sorted.

    Raises:
        UserError: the folder cannot be written.
    """
    counts, failed, seen = Counter[str](), list[tuple[str, str]](), set[str]()
    for answer in journal.answers.values():
        place = os.path.abspath(answer.photo)
        if answer.fault or place in seen:
            continue
        seen.add(place)
        group = answer[0].name if answer.sure else UNSURE
        try:
            (folder / group).mkdir(parents=True, exist_ok=True)
            _move(journal, answer, folder / group) if move else _link(Path(place), folder / group)
        except FileNotFoundError:
            failed.append((answer.photo, "is not there any more"))
        except OSError as error:
            raise UserError(f"{folder / group}: {error.strerror}; sorted so far: {counted(counts.total(), 'photo')}; "
                            "the same command goes on") from None  # fmt: skip
        else:
            counts[group] += 1
    return counts, failed


def _move(journal: Journal, answer: Answer, folder: Path) -> None:
    photo, noted = Path(answer.photo), journal.moves.get(answer.photo)
    if noted and not os.path.lexists(photo):
        return  # an earlier process has moved it
    if not os.path.lexists(photo):
        raise FileNotFoundError
    target = _reserve(journal, answer.photo, folder, noted)
    if photo.is_symlink():  # a relative link leads elsewhere from another folder
        target.unlink()
        target.symlink_to(photo.resolve())
        photo.unlink()
        return
    try:
        os.replace(photo, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = target.with_name(f".{secrets.token_hex(8)}.part")  # on another file system
        shutil.copy2(photo, part)
        os.replace(part, target)
        photo.unlink()


def _reserve(journal: Journal, photo: str, folder: Path, noted: str | None) -> Path:
    """Return where a photo goes, a path that was free: the journal has it, and then an empty file is made there, so
    that no other process takes it. A process that was killed in between may have done the one or both."""
    if noted and not (os.path.lexists(noted) and os.path.getsize(noted)):
        Path(noted).touch()
        return Path(noted)
    for target in _numbered(folder, Path(photo).name):
        if os.path.lexists(target):
            continue
        journal.add_move(photo, target)
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        return target
    raise AssertionError


def _link(photo: Path, folder: Path) -> None:
    if not photo.exists():
        raise FileNotFoundError
    for target in _numbered(folder, photo.name):
        try:
            target.symlink_to(photo)
        except FileExistsError:
            if target.is_symlink() and os.readlink(target) == str(photo):
                return  # by an earlier process
        else:
            return


def _numbered(folder: Path, name: str) -> Iterator[Path]:
    """Yield ``folder/name``, then ``folder/name (2)`` and so on, before the end of the name."""
    path, number = folder / name, 1
    while True:
        yield path
        number += 1
        end = os.fsencode(f" ({number}){Path(name).suffix}")
        path = folder / os.fsdecode(os.fsencode(Path(name).stem)[: _MAX_BYTES - len(end)] + end)
