"""Is this the header of an image that the decoder understands?

DALI 2.4.0 reads the headers of a batch of 25 to 32 images and more on several threads, and when one of
them fails it raises while the others still work on what is gone: the process dies of a segmentation
fault instead of an exception. So what looks doubtful here is tried alone.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

FORMATS = {"BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
"""What DALI decodes, by PIL's names; of some, not every file."""


def parses(blob: bytes | npt.NDArray[np.uint8]) -> bool:
    """Whether the header is whole. Says nothing about the pixels. A few microseconds for a JPEG."""
    data = memoryview(blob)  # type: ignore[arg-type]  # numpy has the buffer protocol
    return _jpeg(data) if bytes(data[:2]) == b"\xff\xd8" else _other(data)


def _jpeg(data: memoryview) -> bool:
    """Segments follow each other up to the start of scan, with one frame of 1, 3 or 4 channels among them
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
            return frame
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


def _other(data: memoryview) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return image.format in FORMATS
    except Exception:  # PIL raises nearly anything on a damaged file
        return False
