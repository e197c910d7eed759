"""A quick look at an encoded image: whether its header is whole, and whether a JPEG has its end.

DALI 2.4.0 reads the headers of a batch of 25 to 32 images and more on several threads. When a thread fails, DALI raises
while the others still work on memory that is gone: the process dies of a segmentation fault instead of an exception. So
an image that looks doubtful here is tried alone.

Where a JPEG was cut off, a decoder notices only if it needs the missing part. On the CPU that is the crop window and
everything above it, so an epoch would take such an image and the next epoch would not, and a decoder on a GPU may take
it always. This module looks for the end, and the CPU's decoder then tries the whole image, so that the answer is the
same for every window, rank and device.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

FORMATS = {"BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
"""Formats that DALI decodes, by Pillow's names; in some formats not every file."""

_END = b"\xff\xd9"


def parses(blob: bytes | npt.NDArray[np.uint8]) -> bool:
    """Tell whether the header is whole and a JPEG has its end, without a look at what lies between.

    It takes a few microseconds for a JPEG.
    """
    data = memoryview(blob)  # type: ignore[arg-type]  # numpy has the buffer protocol
    return _jpeg(data) if bytes(data[:2]) == b"\xff\xd8" else _other(data)


def _jpeg(data: memoryview) -> bool:
    """Tell whether segments follow each other up to the start of scan, with a frame of 1, 3 or 4 channels among them
    (ITU-T T.81, annex B)."""
    place, frame = 2, False
    while place + 10 <= len(data):
        if data[place] != 0xFF:
            return False
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA:  # start of scan
            return frame and _ends(data, place)
        if marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # these have no length, and no place here
            return False
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (data[n] << 8 | data[n + 1] for n in (place + 5, place + 7))
            frame = height > 0 and width > 0 and data[place + 9] in (1, 3, 4)
        length = data[place + 2] << 8 | data[place + 3]
        if length < 2:
            return False
        place += 2 + length
    return False


def _ends(data: memoryview, scan: int) -> bool:
    """Tell whether the marker that ends a JPEG comes after its scan began, most likely as the last bytes.

    Without the marker, and only then, libjpeg-turbo runs out of data. (A thumbnail's own end comes before the scan.)
    """
    return bytes(data[-2:]) == _END or _END in bytes(data[scan:])


def _other(data: memoryview) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return image.format in FORMATS
    except Exception:  # Pillow raises nearly anything on a damaged file
        return False
