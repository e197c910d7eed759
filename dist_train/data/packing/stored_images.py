"""What a pack stores for an image: its own bytes or a new JPEG, checked by the decoder of training, or a reason."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from dist_train.config import Orientation, PackConfig
from dist_train.data.images.headers import FORMATS
from dist_train.data.images.orientation import sizes
from dist_train.data.images.photos import MAX_PIXELS, open_photo, size_fault
from dist_train.data.images.pillow import upright
from dist_train.data.loading.dali import decode_errors, decode_whole

DEFAULT_QUALITY = 90
RE_ENCODED = "; --quality 95 re-encodes it to JPEG and takes it"
DIGEST_HEX = 32  # digits kept of an image's sha256: 128 bits, no two of a million images share them by chance
# Some files of these formats decode otherwise in DALI than in Pillow, which decodes the photos that a model is given.
COMPARED, TOLERANCE = ("TIFF", "PPM", "JPEG2000"), 3


class Encoding(NamedTuple):
    """Describe how to re-encode images."""

    shorter_side: int | None
    quality: int | None

    @classmethod
    def of(cls, options: PackConfig) -> Encoding | None:
        """Return the encoding that the options ask for; None where images keep their bytes."""
        encoding = cls(options.shorter_side, options.quality)
        return encoding if any(encoding) else None


class Header(NamedTuple):
    """Hold what an image's header says.

    Attributes:
        width, height: size of the upright image in pixels.
        orientation: see ``images.orientation``.
        mode, format: Pillow's names ("RGB", "JPEG").
    """

    width: int
    height: int
    orientation: int
    mode: str
    format: str


class Stored(NamedTuple):
    """Hold an image as a pack stores it.

    Attributes:
        blob: the bytes to store; empty for an image that is left out.
        header: their header, or the reason to leave the image out.
        digest: hash of the source bytes; "" for an image that is left out.
    """

    blob: bytes
    header: Header | str
    digest: str = ""


def stored_images(blobs: list[bytes], encoding: Encoding | None, rule: Orientation, threads: int) -> list[Stored]:
    """Return what to store for each image.

    Args:
        blobs: the source bytes.
        threads: CPU threads of the decoder.
    """
    stored = [_encoded(blob, encoding, rule) for blob in blobs]
    headers = {n: image.header for n, image in enumerate(stored) if isinstance(image.header, Header)}
    for n in [n for n, header in headers.items() if header.format not in FORMATS]:
        del headers[n]
        stored[n] = Stored(b"", _why_not_decoded(blobs[n], None, rule))
    errors = decode_errors([stored[n].blob for n in headers], threads)
    for (n, header), error in zip(headers.items(), errors, strict=True):
        if error is not None:
            stored[n] = Stored(b"", _why_not_decoded(blobs[n], error, rule))
        elif header.format in COMPARED and (difference := _difference(stored[n].blob, header)):
            stored[n] = Stored(b"", difference)
    return [
        image if isinstance(image.header, str) else image._replace(digest=hashlib.sha256(blob).hexdigest()[:DIGEST_HEX])
        for blob, image in zip(blobs, stored, strict=True)
    ]


def _encoded(blob: bytes, encoding: Encoding | None, rule: Orientation) -> Stored:
    encoded = blob if encoding is None else recode(blob, encoding, rule)
    return Stored(b"", encoded) if isinstance(encoded, str) else Stored(encoded, read_header(encoded, rule))


def _why_not_decoded(blob: bytes, dali_reason: str | None, rule: Orientation) -> str:
    """Say why DALI does not decode an image, and, where Pillow decodes it, that re-encoding would take it.

    Args:
        dali_reason: DALI's reason; None where the format is not one that DALI decodes.
    """
    try:
        with warnings.catch_warnings(), open_photo(blob) as image:
            warnings.simplefilter("ignore")
            kind = image.format
            upright(image, rule)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        return dali_reason or _pillow_reason(error)
    reason = dali_reason if dali_reason and kind in ("JPEG", "MPO") else f"{kind} that Pillow decodes and DALI does not"
    return reason + RE_ENCODED


def _difference(blob: bytes, header: Header) -> str | None:
    """Say that DALI decodes an image to other pixels than Pillow does; return None where the pixels are the same."""
    try:
        with open_photo(blob) as image:
            reference = upright(image, "stored")
    except Exception as error:  # as in ``_why_not_decoded``
        return _pillow_reason(error)
    decoded = decode_whole(blob)
    if decoded.shape == reference.shape and np.abs(decoded.astype(int) - reference).max() <= TOLERANCE:
        return None
    return f"{header.format} ({header.mode}) of which DALI makes other pixels than Pillow" + RE_ENCODED


def recode(blob: bytes, encoding: Encoding, rule: Orientation) -> bytes | str:
    """Return the image as it is to be stored, or in one line why it cannot be.

    Images shrink to ``shorter_side``, never grow. An image that need not shrink keeps its bytes, unless ``quality`` is
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
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        return _pillow_reason(error)


def read_header(blob: bytes, rule: Orientation) -> Header | str:
    """Return the header that Pillow reads, or why the image cannot be used: no header, or a size that is not taken."""
    if not blob:
        return "empty file"
    try:
        with _any_size(), open_photo(blob) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width} x {image.height} pixels: larger than {MAX_PIXELS}, a decompression bomb"
            if fault := size_fault(image.width, image.height):
                return fault
            return Header(*sizes(image, rule), image.mode, image.format or "?")
    except Exception as error:  # as in ``recode``
        return _pillow_reason(error)


@contextmanager
def _any_size() -> Iterator[None]:
    """Let Pillow open an image of any size, without a warning."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Corrupt EXIF data": harmless, and frequent in ImageNet
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pillow_reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"  # Pillow's text has a memory address
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
