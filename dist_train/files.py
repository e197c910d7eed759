"""Small files written whole or not at all, their hashes, and folders that are taken back."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dist_train.errors import UserError


class atomic_write:
    """Write a file whole or not at all: ``with atomic_write(path) as file``.

    The content goes to a temporary name in the same folder, and is then synced and renamed. On an error the temporary
    file is removed. An error of the disk, which has a number, names the file, which a write does not by itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")

    def __enter__(self) -> IO[bytes]:
        self.file = self.temporary.open("w+b")
        return self.file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(self.path)
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self.temporary, self.path)
        except OSError as failed:
            failed.filename = failed.filename or str(self.path)
            raise
        finally:
            self._discard()

    def _discard(self) -> None:
        try:
            with suppress(OSError):  # what is left in the buffer does not fit on the disk either
                self.file.close()
        finally:
            self.temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return a folder's ``manifest.json``: {file: {"bytes": its size, "sha256": its hash}}.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such table.
    """
    manifest: Any = json.loads((folder / "manifest.json").read_text())
    if not isinstance(manifest, dict) or not all(
        isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in manifest.values()
    ):
        raise ValueError("has no hashes of files")
    return manifest


def damaged_file(folder: Path, manifest: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """Return the first file of a manifest that is not there or not as it says; None where all are."""
    for name, entry in manifest.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != entry["bytes"] or file_sha256(file) != entry["sha256"]:
            return file
    return None


def read_regular(path: Path, limit: int) -> bytes:
    """Return the content of a regular file. A pipe or a device is refused, for a read could wait for ever.

    Raises:
        UserError: it is no regular file, or has more than ``limit`` bytes.
        OSError: it is not there, or cannot be read.
    """
    check_regular(path, limit)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read(limit)


def check_regular(path: Path, limit: int) -> int:
    """Return the number of bytes of a regular file.

    Raises:
        UserError, OSError: as ``read_regular``.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"{path}: is no ordinary file (a pipe, a device or a folder); put the file itself there")
    if about.st_size > limit:
        raise UserError(f"{path}: {about.st_size} bytes, and {limit} are the limit; make it again")
    return about.st_size


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path, wanted: str) -> list[str]:
    """Return the lines of a text file, without spaces at their ends.

    Args:
        wanted: what the file should be, for errors.

    Raises:
        UserError: there is no such file, or it is no text file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give {wanted}")
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; give {wanted}") from None


def outermost_missing(folder: Path) -> Path | None:
    """Return the outermost folder of a path that is not there; None where all of it is there.

    The path is resolved: ``a/../b`` may be there where ``a`` is not, and comes to be ``b`` when ``a`` is made.
    """
    folder = folder.resolve()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    return missing[-1] if missing else None


def remove_empty(folder: Path, outermost: Path) -> None:
    """Remove a folder, and those that it lies in up to ``outermost``, as far as they are empty; resolved paths."""
    with suppress(OSError):
        for path in (folder, *folder.parents)[: len(folder.parts) - len(outermost.parts) + 1]:
            path.rmdir()
