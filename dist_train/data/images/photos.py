"""The rule that decides which files are photos, for pack, adapt, classify and the page; and how a photo is opened.

A file is a photo by the suffix of its name or, where the name says nothing, by its first bytes. Files that a system or
a program keeps beside the user's photos, and thumbnails of a photo that is there, do not count as photos.
"""

from __future__ import annotations

import functools
import importlib
import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from dist_train.data.account import Account

SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif",
    ".hif",
}  # fmt: skip
"""Suffixes of photo files, in lower case."""

RAW = {
    ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".3fr",
    ".iiq", ".x3f",
}  # fmt: skip
"""Suffixes of the cameras' own formats. Many begin like a TIFF, and a decoder finds only a thumbnail in them."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "PPM", "AVIF", "HEIF")
"""Formats that are opened, by Pillow's names: no format that starts another program (EPS). MPO begins as a JPEG."""

IN_SYSTEM_FOLDERS = "in system folders"
"""A reason in an account."""

MAX_PIXELS = 178_956_970
"""Most pixels of a photo: Pillow's bound for a decompression bomb, a few bytes that decode to gigabytes."""

MAX_RATIO = 100
"""Largest ratio of a photo's longer side to its shorter side. Resized by its shorter side, the photo has as many times
more pixels than a square."""

HEAD = 32
"""Number of first bytes by which a photo is recognised."""

SYSTEM_FOLDERS = {
    "@eadir", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "recycler", "system volume information",
    "lost+found",
}  # fmt: skip
"""Folders that a system or a program keeps, by their names in lower case. Names that begin with a dot count too."""

SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "folder.htt"}
"""Files that a system keeps, by their names in lower case. Names that begin with a dot count too."""

_THUMBNAIL_FOLDERS = {"thumb", "thumbs", "thumbnail", "thumbnails", "_thumbs", "_thumbnails"}
# Each group is the photo's own name, without the mark of a thumbnail: IMG_1_thumb, thumb_IMG_1, tn_IMG_1, IMG_1-150x150
# (WordPress).
_THUMBNAILS = (
    re.compile(r"(.+)[._-](?:thumb|thumbnail|tn)", re.IGNORECASE),
    re.compile(r"(?:thumb|thumbnail|tn)[._-](.+)", re.IGNORECASE),
    re.compile(r"(.+)-\d{2,4}x\d{2,4}"),
)
_MAGIC = re.compile(
    rb"""\xff\xd8\xff                                                       # JPEG
       | \x89PNG\r\n\x1a\n
       | GIF8[79]a
       | RIFF....WEBP
       | BM....\0\0\0\0....[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0            # BMP: a header of a known length
       | II\*\0 | MM\0\*                                                    # TIFF
       | \0\0\0\x0cjP\x20\x20\r\n\x87\n | \xff\x4f\xff\x51                 # JPEG 2000: a file, a bare stream
       | P[1-6][\t\n\r\x20]+[\d\#]                                          # PBM, PGM, PPM
       | ....ftyp(?:avif|avis|heic|heix|heim|heis|hevc|hevx|mif1|msf1)     # AVIF, HEIC
    """,
    re.VERBOSE | re.DOTALL,
)


class File(NamedTuple):
    """Describe a file: its name below its source ("class/file"), and its place in bytes there (offset 0 in folders)."""

    name: str
    offset: int
    size: int


def is_system_folder(name: str) -> bool:
    """Tell whether a folder of this name is a system's or a program's: @eaDir, __MACOSX, lost+found, .thumbnails."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def is_system_file(name: str) -> bool:
    """Tell whether a file of this name is a system's or a program's: Thumbs.db, desktop.ini, ._photo.jpg."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def is_photo_name(name: str) -> bool:
    """Tell whether a file of this name is a photo without a look into it."""
    return _suffix(name) in SUFFIXES and not is_system_file(name)


def is_photo_head(head: bytes) -> bool:
    """Tell by its first ``HEAD`` bytes whether a file is a photo."""
    return _MAGIC.match(head) is not None


def photos_among(
    files: Iterable[File], head: Callable[[File], bytes], where: Callable[[str], str], account: Account
) -> list[File]:
    """Return the photos among files, in their order. The account counts them as taken, and lists all other files.

    Args:
        head: returns the first ``HEAD`` bytes of a file; called where its name says nothing.
        where: returns the name of a file in the account.
    """
    files = list(files)
    named = [file for file in files if _suffix(file.name) in SUFFIXES]
    sizes: dict[str, int] = {}
    for file in named:
        stem = _stem(file.name)
        sizes[stem] = max(sizes.get(stem, 0), file.size)
    taken = []
    for file in files:
        raw = _suffix(file.name) in RAW and _stem(file.name) not in sizes
        if raw and not _is_of_system(file.name):
            account.leave_out(where(file.name), "a camera's raw format; export it as JPEG")
        elif reason := _no_photo(file, sizes, head):
            account.pass_over(where(file.name), reason)
        else:
            taken.append(file)
    account.taken += len(taken)
    return taken


def size_fault(width: int, height: int, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return why a photo of this size is not taken, or None."""
    if width * height > max_pixels:
        return f"{width} x {height} pixels, and {max_pixels} are the limit; make it smaller"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width} x {height} pixels, over {MAX_RATIO} times as long as wide; crop it"
    return None


def open_photo(photo: bytes | memoryview | str | Path | BinaryIO) -> Image.Image:
    """Open a photo by its bytes, its path or its open file: Pillow, with HEIC by libheif. Pixels are not decoded yet.

    Raises:
        PIL.UnidentifiedImageError: the format is not among ``FORMATS``.
        OSError: the file cannot be read. A damaged file can raise nearly anything else.
    """
    _register()
    return Image.open(io.BytesIO(photo) if isinstance(photo, (bytes, memoryview)) else photo, formats=FORMATS)


@functools.cache
def _register() -> None:
    pillow_heif = importlib.import_module("pillow_heif")  # not before the first photo: it loads a library
    pillow_heif.register_heif_opener(thumbnails=False)


def _is_of_system(name: str) -> bool:
    *folders, file = name.split("/")
    return is_system_file(file) or any(is_system_folder(folder) for folder in folders)


def _no_photo(file: File, sizes: dict[str, int], head: Callable[[File], bytes]) -> str | None:
    """Return why a file is no photo of the user's, in the account's words; None for a photo."""
    *folders, name = file.name.split("/")
    if any(is_system_folder(folder) for folder in folders):
        return IN_SYSTEM_FOLDERS
    if is_system_file(name):
        return "of the system"
    suffix = _suffix(name)
    if suffix in RAW:
        return "camera's raw beside its photo"
    if suffix in SUFFIXES:
        original = _original(file.name)
        # A thumbnail is smaller than its photo; a file that is not smaller may be any photo.
        small = any(stem != _stem(file.name) and file.size < sizes.get(stem, 0) for stem in original)
        return "thumbnail of a photo that is there" if small else None
    if is_photo_head(head(file)):
        return None
    return suffix if re.fullmatch(r"\.\w{1,10}", suffix) else "without a known suffix"


def _original(name: str) -> list[str]:
    """Return the photos, by their ``_stem``, of which a file of this name can be the thumbnail."""
    folder, _, stem = _stem(name).rpartition("/")
    above, _, last = folder.rpartition("/")
    places = [folder] if last.lower() not in _THUMBNAIL_FOLDERS else [folder, above]
    stems = [match[1] for pattern in _THUMBNAILS if (match := pattern.fullmatch(stem))]
    return [f"{place}/{own}" for place in places for own in ([stem, *stems] if place != folder else stems)]


def _stem(name: str) -> str:
    """Return a name without suffix: "class/IMG_1.jpg" -> "class/IMG_1"; "IMG_1.jpg" -> "/IMG_1"."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.rpartition('.')[0] or file}"


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _suffix(name: str) -> str:
    """Return the suffix of a name, ".jpg", in lower case; "" where there is none."""
    stem, dot, suffix = _base(name).rpartition(".")
    return f".{suffix.lower()}" if stem and dot else ""
