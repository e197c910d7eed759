"""Tars, listed by their headers: nothing is unpacked, and the images are skipped."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from dist_train.data.account import Account
from dist_train.data.images.photos import HEAD, File, is_photo_name, photos_among
from dist_train.data.sources.kaggle import unpack_remedy
from dist_train.errors import UserError
from dist_train.names import class_name, shown

# First bytes of compressed files: reading at a position needs them as they are.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "zip",
}
_LINKS = 40  # links of links that are followed, as Linux does


def open_tar(path: Path, remedy: str) -> io.FileIO:
    """Open a tar whose images can be read in place. It is unbuffered, for a header has 512 bytes.

    Raises:
        UserError: the tar is not there, cannot be read, or is compressed.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {remedy}")
    if not path.is_file():
        raise UserError(f"{path}: no regular file; {remedy}")
    try:
        file = io.FileIO(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    start = os.pread(file.fileno(), 8, 0)
    kind = next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), "")
    uncompress = (
        "unpack it and give the folder"
        if kind == "zip"
        else "unpack it and give the folder, or uncompress it to a .tar"
    )
    cause = unpack_remedy(path, kind) or (
        kind and f"is {kind}-compressed, its images cannot be read in place; {uncompress}"
    )
    if cause:
        file.close()
        raise UserError(f"{path}: {cause}")
    return file


def tar_files(file: IO[bytes] | io.FileIO, where: str, account: Account, bar: tqdm[Any] | None = None) -> list[File]:
    """Return the files of a tar, with their places in it; all other members go into the account.

    A hard or symbolic link has its target's bytes, under its own name; a link to nothing in this tar is left out by
    name. Where two files have one name, the later replaces the earlier, as in unpacking.

    Args:
        file: the tar, not compressed.
        where: its name in messages.
        bar: moved on to each file's place, where the file is no tar itself.

    Raises:
        UserError: the tar is damaged or cut.
    """
    files: dict[str, File] = {}
    links: dict[str, str] = {}
    for member in tar_headers(file, where, every=True):
        name = _normal(member.name)
        if member.isdir():
            continue
        if name in files or name in links:
            account.pass_over(f"{where}: {name}", "replaced by a later file of the same name")
            files.pop(name, None), links.pop(name, None)
        if member.islnk() or member.issym():
            links[name] = _target(name, member)
        elif member.issparse():
            account.leave_out(f"{where}: {name}", "a sparse file; make the tar again without --sparse")
        elif member.isreg():
            files[name] = File(name, member.offset_data, member.size)
            if bar is not None and not name.endswith(".tar"):
                bar.update(member.offset_data - bar.n)
        else:
            account.pass_over(f"{where}: {name}", "no regular file")
    return [*files.values(), *_resolved(links, files, where, account)]


def tar_photos(descriptor: int, files: list[File], where: str, account: Account) -> list[File]:
    """Return the photos among files of a tar that is open as ``descriptor``."""
    return photos_among(files, lambda file: os.pread(descriptor, HEAD, file.offset), lambda n: f"{where}: {n}", account)


def inner_photos(tar: io.FileIO, inner: File, where: str, account: Account, shared: bool = False) -> list[File]:
    """Return the photos of a tar in a tar, with their places in the outer tar.

    They are called "class/member"; the class is the inner tar's name.

    Args:
        shared: whether other inner tars have the same class; photos are then called "class/inner tar/member".

    Raises:
        UserError: the inner tar is damaged or holds no photo, or its name cannot be a class name.
    """
    stem = Path(inner.name).stem
    try:
        class_name(stem)
    except UserError as error:
        raise UserError(f"{where}: {shown(inner.name)}: {error}") from None
    part = io.BufferedReader(_Slice(tar.fileno(), inner.offset, inner.size))
    here = Account()
    prefix = f"{stem}/{inner.name}" if shared else stem
    files = [
        File(f"{prefix}/{file.name}", inner.offset + file.offset, file.size)
        for file in tar_files(part, f"{where}: {inner.name}", here)
    ]
    photos = tar_photos(tar.fileno(), files, where, here)
    if not photos:
        passed = f" ({here.line()})" if here.found else ""
        raise UserError(f"{where}: {shown(inner.name)}: holds no image{passed}; fetch the archive again")
    account.add(here)
    return photos


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _target(name: str, member: tarfile.TarInfo) -> str:
    """Return the name in the tar that a link means: a hard link has it as it is, a symbolic link relative to its own
    folder."""
    if member.islnk():
        return _normal(member.linkname)
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))


def _resolved(links: dict[str, str], files: dict[str, File], where: str, account: Account) -> list[File]:
    resolved = []
    for name, target in links.items():
        for _ in range(_LINKS):
            target = links.get(target, target)
        if target in files:
            resolved.append(files[target]._replace(name=name))
        elif is_photo_name(posixpath.basename(name)):
            reason = f"a link to {shown(links[name])}, which is no file of this archive; pack the file itself"
            account.leave_out(f"{where}: {name}", reason)
        else:
            account.pass_over(f"{where}: {name}", "broken link")
    return resolved


class _Slice(io.RawIOBase):
    """Present the bytes [start, start + size) of an open file as a file with a position of its own."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self.descriptor, self.start, self.size, self.position = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        room = max(0, self.size - self.position)
        count = os.preadv(self.descriptor, [memoryview(buffer)[:room]], self.start + self.position)
        self.position += count
        return count


def tar_headers(file: IO[bytes], name: str, every: bool = False) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of an uncompressed tar, or with ``every`` all of its members, and check its end mark.

    ``tarfile`` takes a tar that is cut on a header's boundary for a complete tar. The end-of-archive
    block (512 zero bytes, POSIX ustar) distinguishes the two.

    Raises:
        UserError: the tar is damaged or ends early.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps every header of a large archive in memory
                if every or member.isreg():
                    yield member
            end = tar.offset
        file.seek(end)
        block = file.read(512)
    except (tarfile.TarError, EOFError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(f"{name}: not a complete tar ({reason}); fetch or copy it again") from None
    if len(block) < 512 or block.strip(b"\0"):
        raise UserError(f"{name}: the tar is truncated after byte {end}; fetch or copy it again")
