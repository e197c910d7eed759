"""Photos that a command line names (a file, a folder, a pattern, standard input), and what became of their files."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.data.account import Account
from dist_train.errors import UserError

if TYPE_CHECKING:
    import torch

    Load = Callable[[], torch.Tensor]


def find_photos(word: str, option: str, account: Account) -> list[Path]:
    """Return the photos that a word means: a file, those of a folder, or those that match a pattern.

    Args:
        option: what the error names.
        account: counts the photos as taken, and lists the other files.

    Raises:
        UserError: there is no such file.
    """
    from dist_train.classifier import photos

    path = Path(word)
    if word and not path.exists():
        with suppress(RuntimeError):  # no such user
            path = path.expanduser()
    if word and path.is_dir():
        return photos.in_folder(path, account)
    if word and path.exists():
        account.taken += 1  # it was asked for by name, so it is a photo whatever its name says
        return [path]
    matches = photos.matching(str(path), account) if glob.has_magic(word) else []
    if not matches:
        raise UserError(f"{option}: no such file or folder, and no pattern that matches; check the path")
    return matches


def named_photos(
    words: Sequence[str], decode: Callable[..., torch.Tensor], account: Account
) -> Iterator[tuple[str, Load]]:
    """Yield the name of each photo that the words mean, and a function that decodes it or raises UserError.

    Args:
        words: files, folders, patterns; "-": one photo, or paths one a line, from standard input.
        decode: makes pixels of a path, or of bytes and a name.
        account: counts all of them as taken, and lists the files that are passed over.
    """
    from dist_train.classifier import photos

    for word in words:
        if word != "-":
            yield from _of_word(word, decode, account)
            continue
        data = sys.stdin.buffer.read()
        if photos.is_image(data):
            account.taken += 1
            yield "-", partial(decode, data, "standard input")
            continue
        paths = [] if b"\0" in data else [os.fsdecode(line) for line in data.splitlines() if line.strip()]
        if not paths:
            what = "neither an image nor a list of paths" if data else "empty"
            error = UserError(f"standard input: {what}; give one photo, or paths one a line")
            yield "-", _failing(error, account)
        for path in paths:
            yield from _of_word(path, decode, account)


def _of_word(word: str, decode: Callable[..., torch.Tensor], account: Account) -> Iterator[tuple[str, Load]]:
    own = Account()
    try:
        paths = find_photos(word, word, own)
    except UserError as error:
        yield word, _failing(error, account)
        return
    broken, own.left_out = own.left_out, []
    account.add(own)
    for name, reason in broken:
        yield name, _failing(UserError(f"{name}: {reason}"), account)
    for path in paths:
        yield str(path), partial(decode, path)


def _failing(error: UserError, account: Account) -> Load:
    """Return a function that raises the error; its photo counts as taken, like a photo that cannot be decoded."""
    account.taken += 1

    def fail() -> torch.Tensor:
        raise error

    return fail


def print_account(account: Account, details: bool = True) -> None:
    """Print on stderr what became of several files; ``details``: with each photo that is left out."""
    if account.found > 1:
        print("\n".join([account.line(), *account.left_out_lines() * details, *account.passed_over_lines()]),
              file=sys.stderr)  # fmt: skip
