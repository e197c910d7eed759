"""Photos that a command line names (a file, a folder, a pattern, standard input), and what became of their files."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.data.account import Account
from dist_train.errors import UserError

if TYPE_CHECKING:
    from dist_train.classifier.reading import Source


def check_files(files: Mapping[str, Path | None]) -> None:
    """Check, before any work, files that are to be written, each given by the name of its option.

    Raises:
        UserError: a file cannot be written, or two are the same.
    """
    options: dict[Path, str] = {}
    for option, file in files.items():
        if file is None:
            continue
        if file.is_dir() or not file.absolute().parent.is_dir():
            raise UserError(f"--{option} {file}: is a folder, or lies in none; give a file to write")
        other = options.setdefault(file.resolve(), option)
        if other != option:
            raise UserError(f"--{option} {file}: is the file of --{other} too; give another")


def is_there(word: str) -> bool:
    """Return whether a word means a file, a folder, or a pattern that matches something."""
    path = os.path.expanduser(word)
    return os.path.exists(path) or (glob.has_magic(path) and any(glob.iglob(path, recursive=True)))


def find_photos(word: str, option: str, account: Account) -> list[Path]:
    """Return the photos that a word means: a file, those of a folder, or those that match a pattern.

    Args:
        option: what the error names.
        account: counts the photos as taken, and lists the other files.

    Raises:
        UserError: there is no such file.
    """
    from dist_train.classifier import photo_files

    path = Path(word)
    if word and not path.exists():
        with suppress(RuntimeError):  # no such user
            path = path.expanduser()
    if word and path.is_dir():
        return photo_files.in_folder(path, account)
    if word and path.exists():
        account.taken += 1  # it was asked for by name, so it is a photo whatever its name says
        return [path]
    matches = photo_files.matching(str(path), account) if glob.has_magic(word) else []
    if not matches:
        raise UserError(f"{option}: no such file or folder, and no pattern that matches; check the path")
    return matches


def named_photos(words: Sequence[str], account: Account) -> Iterator[Source]:
    """Yield the name of each photo that the words mean, and the photo, or why there is none.

    Args:
        words: files, folders, patterns; "-": one photo, or paths one a line, from standard input.
        account: counts all of them as taken, and lists the files that are passed over.
    """
    from dist_train.classifier import photo_files

    for word in words:
        if word != "-":
            yield from _of_word(word, account)
            continue
        data = sys.stdin.buffer.read()
        if photo_files.is_image(data):
            account.taken += 1
            yield "-", data
            continue
        paths = [] if b"\0" in data else [os.fsdecode(line) for line in data.splitlines() if line.strip()]
        if not paths:
            account.taken += 1
            what = "neither an image nor a list of paths" if data else "empty"
            yield "-", UserError(f"standard input: {what}; give one photo, or paths one a line")
        for path in paths:
            yield from _of_word(path, account)


def _of_word(word: str, account: Account) -> Iterator[Source]:
    """Yield the photos of a word; those that cannot be had count as taken, like photos that cannot be decoded."""
    own = Account()
    try:
        paths = find_photos(word, word, own)
    except UserError as error:
        account.taken += 1
        yield word, error
        return
    broken, own.left_out = own.left_out, []
    account.add(own)
    account.taken += len(broken)
    for name, reason in broken:
        yield name, UserError(f"{name}: {reason}")
    for path in paths:
        yield str(path), path


def print_account(account: Account, details: bool = True) -> None:
    """Print on stderr what became of several files, and what there is to note; ``details``: with each photo that is
    left out."""
    if account.found > 1 or account.notes:
        print("\n".join([account.line(), *account.left_out_lines() * details, *account.passed_over_lines()]),
              file=sys.stderr)  # fmt: skip
