"""Pictures for tests."""

from __future__ import annotations

import struct
import zlib


def png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header has this size, without pixels: a real file would have them, compressed to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
