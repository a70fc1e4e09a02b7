"""Hostile pictures."""

from __future__ import annotations

import struct
import zlib


def pictures() -> dict[str, bytes]:
    def png(width: int, height: int, data: bytes = b"") -> bytes:
        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    return {
        "is empty": b"",
        "is text": b"hello",
        "has no pixels": png(32, 32),
        "is larger than it should be": png(64, 64, zlib.compress(bytes(64 * 193))),
        "is huge": png(60_000, 60_000, zlib.compress(bytes(1000))),
        "has a billion pixels": png(2**31 - 1, 2**31 - 1),
        "is a bomb": png(32, 32, zlib.compress(bytes(50_000_000), 9)),
        "has broken pixels": png(32, 32, b"\x78\x9c" + b"\xff" * 50),
        "is a GIF": b"GIF89a" + bytes(20),
        "is an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>',
    }
