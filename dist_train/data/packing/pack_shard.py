"""One shard of a pack: read its images, check them with the training decoder, write it whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from dist_train.config import Orientation, PackConfig
from dist_train.data.images.headers import FORMATS
from dist_train.data.images.orientation import sizes
from dist_train.data.images.photos import MAX_PIXELS, open_photo, size_fault
from dist_train.data.images.pillow import upright
from dist_train.data.loading.dali import decode_errors, decode_whole
from dist_train.data.shards.index import dali_index, tar_members
from dist_train.data.sources.archives import Item
from dist_train.distributed.pool import advance
from dist_train.errors import UserError
from dist_train.files import atomic_write, file_sha256, write_text

DEFAULT_QUALITY = 90
RE_ENCODED = "; --quality 95 re-encodes it to JPEG and takes it"
DIGEST_HEX = 32  # digits kept of an image's sha256: 128 bits, no two of a million images share them by chance
# Images checked at a time: enough to spread DALI's cost of starting, few enough for the memory.
BATCH_IMAGES, BATCH_BYTES = 128, 16_000_000
# Of these formats some files decode otherwise in DALI than in Pillow, which the model's photos are decoded by.
COMPARED, TOLERANCE = ("TIFF", "PPM", "JPEG2000"), 3


class Encoding(NamedTuple):
    """How to re-encode."""

    shorter_side: int | None
    quality: int | None

    @classmethod
    def of(cls, options: PackConfig) -> Encoding | None:
        """None: bytes as they are."""
        encoding = cls(options.shorter_side, options.quality)
        return encoding if any(encoding) else None


class ShardTask(NamedTuple):
    """One shard to write: its tar (the ``.idx`` lies beside it), its record, its images in order."""

    path: Path
    record: Path
    items: list[Item]
    encoding: Encoding | None
    rule: Orientation
    drop: frozenset[int] = frozenset()
    """Images, by their place among the items, that are left out as duplicates."""


class Header(NamedTuple):
    """What an image's header says: size of the upright image in pixels, its orientation (``data.orientation``), PIL's
    mode ("RGB") and format ("JPEG")."""

    width: int
    height: int
    orientation: int
    mode: str
    format: str


def write_shard(task: ShardTask, threads: int) -> None:
    """Write the tar, its ``.idx`` and, last, the record: a JSON file with all that the index needs.

    The content depends on the task alone. Images that cannot be decoded are left out and listed. Of all others, those
    to drop too, the record has the hash of the source bytes.

    Raises:
        UserError: a source cannot be read.
        OSError: the shard cannot be written; nothing of it is left.
    """
    from webdataset import TarWriter  # not above: what only reads shards runs without the library

    kept: list[tuple[Item, Header]] = []
    left_out: list[dict[str, str]] = []
    digests: list[str] = []
    task.record.unlink(missing_ok=True)  # from here on it may not be true
    task.path.parent.mkdir(parents=True, exist_ok=True)
    with (whole := atomic_write(task.path)) as file:
        with TarWriter(file, encoder=False, mtime=0, user="root", group="root") as tar:
            for part in batches([item.size for item in task.items]):
                items = task.items[part]
                for item, (blob, header, digest) in zip(items, _prepare(items, task, threads), strict=True):
                    digests.append(digest)
                    if isinstance(header, str):
                        left_out.append({"key": item.key, "source": item.source, "reason": header})
                        continue
                    if len(digests) - 1 in task.drop:
                        continue
                    tar.write({"__key__": item.key, "cls": str(item.label).encode(), "jpg": blob})
                    kept.append((item, header))
                advance(len(items))
        file.flush()
        members = tar_members(whole.temporary)
        shard = {
            "name": task.path.name,
            "samples": len(kept),
            "bytes": whole.temporary.stat().st_size,
            "sha256": file_sha256(whole.temporary),
        }
    write_text(task.path.with_suffix(".idx"), dali_index(members))
    record = {
        "shard": shard,
        **_facts(kept, members),
        "undecodable": left_out,
        "digests": digests,
        "dropped": sorted(task.drop),
    }
    write_text(task.record, json.dumps(record))


def _prepare(items: list[Item], task: ShardTask, threads: int) -> list[tuple[bytes, Header | str, str]]:
    """The bytes to store for each item, their header or the reason to leave them out, and the hash of the source
    bytes ("" for what is left out)."""
    stored: list[tuple[bytes, Header | str]] = []
    blobs = read_blobs(items)
    for blob in blobs:
        recoded = blob if task.encoding is None else recode(blob, task.encoding, task.rule)
        stored.append((b"", recoded) if isinstance(recoded, str) else (recoded, read_header(recoded, task.rule)))
    headers = {n: header for n, (_, header) in enumerate(stored) if isinstance(header, Header)}
    for n in [n for n, header in headers.items() if header.format not in FORMATS]:
        del headers[n]
        stored[n] = b"", _cause(blobs[n], None, task.rule)
    errors = decode_errors([stored[n][0] for n in headers], threads)
    for (n, header), error in zip(headers.items(), errors, strict=True):
        if error is not None:
            stored[n] = b"", _cause(blobs[n], error, task.rule)
        elif header.format in COMPARED and (difference := _difference(stored[n][0], header)):
            stored[n] = b"", difference
    return [
        (kept, header, "" if isinstance(header, str) else hashlib.sha256(blob).hexdigest()[:DIGEST_HEX])
        for blob, (kept, header) in zip(blobs, stored, strict=True)
    ]


def _cause(blob: bytes, said: str | None, rule: Orientation) -> str:
    """Say why an image is left out that DALI does not decode, and that re-encoding takes it, where Pillow decodes it.

    Args:
        said: by DALI; None where the format is not one of its own.
    """
    try:
        with warnings.catch_warnings(), open_photo(blob) as image:
            warnings.simplefilter("ignore")
            kind = image.format
            upright(image, rule)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        return said or _pil_reason(error)
    reason = said if said and kind in ("JPEG", "MPO") else f"{kind} that Pillow decodes and DALI does not"
    return reason + RE_ENCODED


def _difference(blob: bytes, header: Header) -> str | None:
    """Say that the training decoder makes other pixels of an image than Pillow does; None where it does not."""
    try:
        with open_photo(blob) as image:
            reference = upright(image, "stored")
    except Exception as error:  # as in ``_cause``
        return _pil_reason(error)
    decoded = decode_whole(blob)
    if decoded.shape == reference.shape and np.abs(decoded.astype(int) - reference).max() <= TOLERANCE:
        return None
    return f"{header.format} ({header.mode}) of which DALI makes other pixels than Pillow" + RE_ENCODED


def recode(blob: bytes, encoding: Encoding, rule: Orientation) -> bytes | str:
    """The image as it is to be stored; or why it cannot be, in a line.

    Images shrink to ``shorter_side``, never grow. One that need not shrink keeps its bytes, unless ``quality`` is
    given or DALI does not decode its format. EXIF data is dropped: pixels are stored upright, or, under the rule
    ``stored``, as they were.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = open_photo(blob)
            scale = (encoding.shorter_side or min(source.size)) / min(source.size)
            if scale >= 1 and encoding.quality is None and source.format in FORMATS:
                return blob
            image = Image.fromarray(upright(source, rule))
        if scale < 1:
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=encoding.quality or DEFAULT_QUALITY)
        return out.getvalue()
    except Exception as error:  # PIL raises nearly anything on a damaged file
        return _pil_reason(error)


def read_header(blob: bytes, rule: Orientation) -> Header | str:
    """The header by PIL, or why the image cannot be used: no header, or a size that is not taken."""
    if not blob:
        return "empty file"
    try:
        with _any_header(), open_photo(blob) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width} x {image.height} pixels: larger than {MAX_PIXELS}, a decompression bomb"
            if fault := size_fault(image.width, image.height):
                return fault
            return Header(*sizes(image, rule), image.mode, image.format or "?")
    except Exception as error:  # see recode
        return _pil_reason(error)


@contextmanager
def _any_header() -> Iterator[None]:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Corrupt EXIF data": harmless, and many in ImageNet
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pil_reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"  # PIL's text has a memory address
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def batches(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut a row of images, given their bytes, into batches to be decoded at a time."""
    first, total = 0, 0
    for here, size in enumerate(sizes):
        if here > first and (here - first == BATCH_IMAGES or total + size > BATCH_BYTES):
            yield slice(first, here)
            first, total = here, 0
        total += size
    yield slice(first, len(sizes))


def read_blobs(items: list[Item]) -> list[bytes]:
    """The source bytes of each item, by position.

    Raises:
        UserError: a source is gone or shorter than at the scan.
    """
    files: dict[str, int] = {}
    blobs = []
    try:
        for item in items:
            if item.path not in files:
                files[item.path] = os.open(item.path, os.O_RDONLY)
            blobs.append(os.pread(files[item.path], item.size, item.offset))
            if len(blobs[-1]) != item.size:
                raise UserError(f"{item.source}: ends early; the source changed since it was scanned: start again")
    except OSError as error:
        raise UserError(f"{item.source}: cannot be read ({error.strerror}); make it readable and start again") from None
    finally:
        for file in files.values():
            os.close(file)
    return blobs


def _facts(kept: list[tuple[Item, Header]], members: list[tuple[str, str, int, int]]) -> dict[str, Any]:
    """Of the images in the shard: a row each (offset, size, width, height, orientation, label, key), the path that each
    was packed from, how many of each mode and format, and those whose name says JPEG while they are not."""
    places = [(offset, size) for _, extension, offset, size in members if extension == "jpg"]
    rows = [
        (*place, header.width, header.height, header.orientation, item.label, item.key)
        for place, (item, header) in zip(places, kept, strict=True)
    ]
    misnamed = [
        {"key": item.key, "source": item.source, "format": header.format}
        for item, header in kept
        # MPO: a JPEG with further pictures behind it
        if header.format not in ("JPEG", "MPO") and item.source.lower().endswith((".jpg", ".jpeg"))
    ]
    modes = Counter(header.mode for _, header in kept)
    formats = Counter(header.format for _, header in kept)
    sources = [item.name for item, _ in kept]
    return {"rows": rows, "sources": sources, "modes": modes, "formats": formats, "misnamed": misnamed}
