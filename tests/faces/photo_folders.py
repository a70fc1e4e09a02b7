"""Photo folders for the tests: real ones where the data is, broken files made by hand."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path

import pytest

DATA = Path(os.environ.get("SPARFACE_DATA") or Path(__file__).parents[3] / "shared" / "data")


def real_photos(folder: Path, subset: str, identities: int, images: int) -> Path:
    """Copy a few real photos into a folder per identity; skips the test where there are none."""
    if not (DATA / subset).is_dir():
        pytest.skip(f"no real photos at {DATA / subset}: set SPARFACE_DATA")
    enough = (d for d in sorted((DATA / subset).iterdir()) if d.is_dir() and len(list(d.iterdir())) >= images)
    for source, _ in zip(enough, range(identities), strict=False):
        (folder / source.name).mkdir(parents=True)
        for photo in sorted(source.iterdir())[:images]:
            shutil.copy(photo, folder / source.name)
    return folder


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
