"""Ways to break a file, whatever it holds."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Breaking = Callable[[Path], object]
"""Breaks a file, or the workspace."""
Rows = Iterator[tuple[str, Breaking, list[str]]]
"""Name, what breaks the workspace, and the command that meets it."""
SHOW = ["shards", "show", "faces"]
VERIFY = ["evaluate", "verification", "--checkpoint", "run", "--shards", "faces"]
ALIGN = ["align", "photos", "out", "--already-cropped", "--size", "32", "--workers", "1"]
TRAIN = ["train", "--config", "given.yaml", "--out", "out"]
WRONG: dict[str, Any] = {
    "null": None,
    "a text": "x",
    "a number": -1,
    "a list": [[]],
    "a table": {"a": {"b": 1}},
    "huge": 10**300,
}


def writing(data: bytes) -> Breaking:
    return lambda path: _replace(path, data)


def _replace(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def kinds() -> Iterator[tuple[str, Breaking]]:
    """Things that are no plain file, or hold nothing of use."""

    def instead(make: Callable[[Path], object]) -> Breaking:
        def change(path: Path) -> None:
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)

        return change

    outside = Path("../outside")
    yield "is a folder", instead(Path.mkdir)
    yield "is a FIFO", instead(os.mkfifo)
    yield "is a dangling link", instead(lambda path: path.symlink_to("nowhere"))
    yield "is a link in a circle", instead(lambda path: path.symlink_to(path.name))
    yield "is a link to a device", instead(lambda path: path.symlink_to("/dev/zero"))
    yield (
        "is a link to another file",
        instead(
            lambda path: path.symlink_to(os.path.relpath(_root(path) / outside / "secret.txt", path.parent))
        ),
    )
    yield "is empty", writing(b"")
    yield "is noise", writing(random.Random(0).randbytes(4096))
    yield "is text", writing(b"hello\n")
    yield "is zeros", writing(bytes(4096))


def _root(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "work")


def truncated(places: int = 6) -> Iterator[tuple[str, Breaking]]:
    """Cut off behind some share of its bytes."""
    for place in range(1, places):

        def cut(path: Path, share: float = place / places) -> None:
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * share)])

        yield f"is cut off at {place}/{places}", cut


def json_documents() -> Iterator[tuple[str, Breaking]]:
    """What no JSON object is, or what a parser stumbles over."""
    yield "is not JSON", writing(b"{")
    yield "is JSON of something else", writing(b'"hello"')
    yield "is a JSON list", writing(b"[]")
    yield "is an empty object", writing(b"{}")
    yield "is nested deeply", writing(b"[" * 200_000)
    yield "is nested deeply in objects", writing(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    yield "has a number of a million digits", writing(b'{"schema": ' + b"9" * 1_000_000 + b"}")
    yield "is not UTF-8", writing(b'{"name": "\xff\xfe"}')


def fields(document: dict[str, Any], names: list[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The document without each field, and with each field being something else."""
    for name in names if names is not None else list(document):
        yield f"lacks {name}", {key: value for key, value in document.items() if key != name}
        for kind, wrong in WRONG.items():
            if type(wrong) is not type(document[name]) or kind == "a number":
                yield f"has {kind} as {name}", {**document, name: wrong}


def dumped(document: Any) -> Breaking:
    return writing(json.dumps(document).encode())


def at(name: str, breaking: Breaking) -> Breaking:
    """Break a file of the workspace."""
    return lambda work: breaking(work / name)
