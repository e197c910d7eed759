"""Small files written whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import IO, Any

from dist_train.errors import UserError


class atomic_write:
    """``with atomic_write(path) as file``: all of it under the final name, or nothing.

    Writes to a temporary name in the same folder, then fsync and rename; removed on an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")

    def __enter__(self) -> IO[bytes]:
        self.file = self.temporary.open("w+b")
        return self.file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self.temporary, self.path)
        finally:
            try:
                self.file.close()
            finally:
                self.temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file that is an ordinary one: nobody waits for what a pipe or a device never gives.

    Raises:
        UserError: it is none, or of more than ``limit`` bytes.
        OSError: it is not there, or cannot be read.
    """
    check_regular(path, limit)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read(limit)


def check_regular(path: Path, limit: int) -> int:
    """Bytes of a file that is an ordinary one. Raises as ``read_regular``."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"{path}: is no ordinary file (a pipe, a device or a folder); put the file itself there")
    if about.st_size > limit:
        raise UserError(f"{path}: {about.st_size} bytes, and {limit} are the limit; make it again")
    return about.st_size


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
