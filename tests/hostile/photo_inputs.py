"""Hostile photos, and lists of photos and pairs."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from breaking import (
    ALIGN,
    VERIFY,
    Breaking,
    Rows,
    at,
    kinds,
    truncated,
    writing,
)
from pictures import pictures


def photos(address: str) -> Rows:
    for name, breaking in [*kinds(), *pictured()]:
        yield name, at("photos/a/1.jpg", breaking), ALIGN
    yield (
        "are in a circle of links",
        lambda w: (w / "photos/a/1.jpg").unlink() or (w / "photos/a/x").symlink_to("."),
        ALIGN,
    )
    yield "are a link to a folder outside", outside_folder, ALIGN
    yield "are no folder", lambda w: None, ["align", "nowhere", "out"]
    yield "are an empty folder", lambda w: (w / "empty").mkdir(), ["align", "empty", "out"]
    yield "are a FIFO", lambda w: os.mkfifo(w / "fifo"), ["align", "fifo", "out"]


def outside_folder(work: Path) -> None:
    (work / "photos/a/1.jpg").rename(work / "../outside/1.jpg")
    (work / "photos/a").rmdir()
    (work / "photos/a").symlink_to("../../outside")


def pictured() -> Iterator[tuple[str, Breaking]]:
    yield from truncated(4)
    for name, data in pictures().items():
        if name != "is larger than it should be":
            yield name, writing(data)
    yield "is one pixel high and 60,000 wide", writing(jpeg(60_000, 1))
    yield "is one pixel wide and 60,000 high", writing(jpeg(1, 60_000))
    yield "claims 65,000 pixels a side", claimed(65_000)
    yield "claims no pixels", claimed(0)


def jpeg(width: int, height: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "JPEG")
    return out.getvalue()


def claimed(side: int) -> Breaking:
    data = bytearray(jpeg(64, 64))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", side, side)
    return writing(bytes(data))


def tables(address: str) -> Rows:
    contents = {
        "has no columns": b"hello\n",
        "lacks identities": b"path\na/1.jpg\n",
        "has an empty path": b"path,identity\n,x\n",
        "has an empty identity": b"path,identity\na/1.jpg,\n",
        "names the folder itself": b"path,identity\n.,x\n",
        "names a file outside": b"path,identity\n../outside/secret.txt,x\n",
        "names an absolute file": b"path,identity\n/etc/passwd,x\n",
        "names a NUL": b"path,identity\na\0b.jpg,x\n",
        "names a very long file": b"path,identity\n" + b"a" * 300 + b".jpg,x\n",
        "names a very long path": b"path,identity\n" + b"a/" * 5000 + b".jpg,x\n",
        "names a file twice": b"path,identity\na/1.jpg,x\na/1.jpg,y\n",
        "names nothing that is there": b"path,identity\nnowhere.jpg,x\n",
        "has a cell of megabytes": b"path,identity\n" + b"a" * 2_000_000 + b",x\n",
        "has a quote that never ends": b'path,identity\n"a,x\n',
        "is UTF-16": "path,identity\na,x\n".encode("utf-16"),
        "has an identity of escapes": b"path,identity\na/1.jpg,\x1b[2J\n",
        "has an identity too long": b"path,identity\na/1.jpg," + b"x" * 300 + b"\n",
    }
    yield from filled("photos/list.csv", contents, ["align", "photos/list.csv", "out", *ALIGN[3:]])


def pairs(address: str) -> Rows:
    contents = {
        "announces too many": b"9\na\t1\t2\n",
        "announces nothing": b"0\n",
        "announces a fortune": b"999999999\n",
        "announces letters": b"x\n",
        "has two folds of letters": b"2\tx\n",
        "has spaces for tabs": b"1\na 1 2\na 1 b 1\n",
        "has an empty name": b"1\n\t1\t2\na\t1\tb\t1\n",
        "names a path": b"1\n../a\t1\t2\na\t1\tb\t1\n",
        "names a photo zero": b"1\na\t0\t2\na\t1\tb\t1\n",
        "names a negative photo": b"1\na\t-1\t2\na\t1\tb\t1\n",
        "pairs a photo with itself": b"1\na\t1\t1\na\t1\tb\t1\n",
        "has a different pair of one person": b"1\na\t1\t2\na\t1\ta\t2\n",
        "names people who are not there": b"1\na\t1\t2\na\t1\tb\t1\n",
        "has escapes": b"1\n\x1b[2J\t1\t2\na\t1\tb\t1\n",
        "is UTF-16": "1\na\t1\t2\n".encode("utf-16"),
        "has only line ends": b"\n\n\n",
        "has digits of another script": "١\n".encode(),
    }
    yield from filled("pairs.txt", contents, [*VERIFY, "--pairs", "pairs.txt"])


def filled(file: str, contents: dict[str, bytes], command: list[str]) -> Rows:
    """A file of the workspace that is no plain one, or holds what it should not."""
    for name, breaking in kinds():
        yield name, at(file, breaking), command
    for name, data in contents.items():
        yield name, at(file, writing(data)), command
