"""Hostile shard sets."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from breaking import (
    SHOW,
    VERIFY,
    Breaking,
    Rows,
    at,
    json_documents,
    kinds,
    truncated,
    writing,
)
from pictures import pictures

SHARD = "faces/faces-000000.tar"


def manifests(address: str) -> Rows:
    def edited(change: Callable[[dict[str, Any]], Any]) -> Breaking:
        def breaking(path: Path) -> None:
            document = json.loads(path.read_bytes())
            replaced = change(document)
            path.write_text(json.dumps(document if replaced is None else replaced))

        return breaking

    def field(name: str, value: Any) -> Breaking:
        return edited(lambda m: m.__setitem__(name, value))

    def shard(name: str, value: Any) -> Breaking:
        return edited(lambda m: m["shards"][0].__setitem__(name, value))

    rows: list[tuple[str, Breaking]] = [*kinds(), *truncated(8), *json_documents()]
    for name in (
        "schema",
        "name",
        "size",
        "encoding",
        "lossy",
        "identities",
        "provenance",
        "licence",
        "shards",
    ):
        rows.append((f"lacks {name}", edited(lambda m, name=name: m.pop(name) and None)))  # type: ignore[misc]
        for kind, wrong in (("null", None), ("a number", -1), ("a list", [[]]), ("huge", 10**300)):
            rows.append((f"has {kind} as {name}", field(name, wrong)))
    for name in ("file", "samples", "bytes", "sha256", "runs"):
        rows.append(
            (f"has a shard without {name}", edited(lambda m, name=name: m["shards"][0].pop(name) and None))
        )  # type: ignore[misc]
        for kind, wrong in (  # type: ignore[assignment]
            ("null", None),
            ("a number", -1),
            ("a text", "x"),
            ("a list", [[1]]),
            ("huge", 10**300),
        ):
            rows.append((f"has {kind} as a shard's {name}", shard(name, wrong)))
    rows += [
        ("is of the future", field("schema", 99)),
        ("names a set with a path", field("name", "../x")),
        ("has faces of no size", field("size", [0, 0])),
        ("has huge faces", field("size", [10**9, 10**9])),
        ("has three sides", field("size", [32, 32, 32])),
        ("has an encoding to run", field("encoding", "pipe:id")),
        ("has no identities", field("identities", {})),
        ("has no shards", field("shards", [])),
        ("has more people than faces", field("identities", {f"p{i}": 1 for i in range(10_000)})),
        ("has a person of minus one face", field("identities", {"a": -1})),
        ("has an identity with an escape", field("identities", {"\x1b[2J": 72})),
        ("has a shard elsewhere", shard("file", "../../outside/secret.txt")),
        ("has an absolute shard", shard("file", "/etc/passwd")),
        ("has a run of another label", shard("runs", [[99, 72]])),
        ("has negative runs", shard("runs", [[0, -72]])),
        ("has overflowing runs", shard("runs", [[0, 2**62], [1, 2**62]])),
        ("has fractions as runs", shard("runs", [[0.5, 1.5]])),
        ("has runs side by side", shard("runs", [[0, 1], [0, 71]])),
        ("has ragged runs", shard("runs", [[0, 1], [1]])),
        ("has runs of texts", shard("runs", [["0", "72"]])),
        (
            "asks for gigabytes",
            edited(lambda m: m.update(shards=m["shards"] * 2000, identities={"a": 2**31 - 1})),
        ),
        ("has a run of two billion faces", edited(billions)),
    ]
    for name, breaking in rows:
        yield name, at("faces/manifest.json", breaking), SHOW


def billions(manifest: dict[str, Any]) -> None:
    manifest["shards"][0].update(samples=2**31 - 1, runs=[[0, 2**31 - 1]])
    manifest["identities"] = {"a": 2**31 - 1}


def shards(address: str) -> Rows:
    rows: list[tuple[str, Breaking]] = [
        *kinds(),
        *truncated(8),
        ("is gone", Path.unlink),
        ("is compressed", lambda path: path.write_bytes(zlib.compress(path.read_bytes()))),
        ("has another digest", lambda path: path.write_bytes(path.read_bytes() + bytes(512))),
    ]
    for name, breaking in rows:
        yield name, at(SHARD, breaking), VERIFY
    for name, breaking in sealed_shards():
        yield f"{name}, digest right", lambda work, breaking=breaking: seal(work, breaking), VERIFY  # type: ignore[misc]


def seal(work: Path, breaking: Breaking) -> None:
    """Break a shard and make the manifest agree, as somebody would who means harm."""
    path, manifest = work / SHARD, work / "faces/manifest.json"
    breaking(path)
    data = path.read_bytes()
    document = json.loads(manifest.read_bytes())
    document["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(document))


def sealed_shards() -> Iterator[tuple[str, Breaking]]:
    yield from ((f"{name}", breaking) for name, breaking in truncated(5))
    yield "is noise", writing(b"\x81" * 5120)
    yield "is zeros", writing(bytes(10240))
    for offset, name in HEADER.items():
        yield f"has noise as a header's {name}", patched(offset, b"\xff\xfe\xfd")
    for kind, name in TYPES.items():
        yield f"has a member that is {name}", retyped(kind)
    for name, value in SIZES.items():
        yield f"has a member of {name} bytes", patched(124, value)
    for key in ("../../outside/secret", "/etc/passwd", "a.b", "", "a b", "ü", "k" * 95):
        yield f"has a sample {key[:24]!r}", renamed(key)
    for name, content in SIDECARS.items():
        yield f"has a sidecar that {name}", membered(".json", content)
    for name, content in pictures().items():
        yield f"has a picture that {name}", membered(".png", content)
    yield "has one sidecar fewer", reordered(lambda members: members[:-1])
    yield (
        "has a stranger's sample",
        reordered(lambda members: [*members[2:4], *members[:2], *members[4:]][::-1]),
    )
    yield "has no sample", reordered(lambda members: [])


HEADER = {0: "name", 124: "size", 148: "checksum", 156: "type", 257: "magic", 345: "prefix"}
TYPES = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"5": "a folder", b"6": "a FIFO",
         b"x": "a pax header", b"L": "a long name", b"S": "sparse", b"g": "a global header"}  # fmt: skip
SIZES = {"minus one": b"-0000000001\0", "eight billion": b"77777777777\0", "binary": b"\x80" + b"\xff" * 11,
         "no": b" " * 12, "lettered": b"abcdefghijk\0"}  # fmt: skip
SIDECARS = {
    **{
        "is not JSON": b"{",
        "is a list": b"[]",
        "is empty": b"",
        "is null": b"null",
        "is not UTF-8": b'{"a": "\xff"}',
    },
    "is nested deeply": b"[" * 100_000,
    "lacks the label": b'{"identity": "a", "source": "b"}',
    "has a label that is a text": b'{"identity": "a", "label": "0", "source": "b"}',
    "has another identity": b'{"identity": "nobody", "label": 0, "source": "b"}',
    "has a source that is a list": b'{"identity": "a", "label": 0, "source": []}',
}


def patched(offset: int, data: bytes) -> Breaking:
    """Other bytes at a place of the first member's header, whose checksum is right again afterwards,
    unless it is what changed."""

    def breaking(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[offset : offset + len(data)] = data
        if offset != 148:
            checksum = sum(content[:148]) + 8 * 32 + sum(content[156:512])
            content[148:156] = b"%06o\0 " % checksum
        path.write_bytes(content)

    return breaking


def retyped(kind: bytes) -> Breaking:
    return patched(156, kind)


def renamed(key: str) -> Breaking:
    return reordered(
        lambda members: [
            (key + name[name.index(".") :] if i < 2 else name, data) for i, (name, data) in enumerate(members)
        ]
    )


def membered(suffix: str, content: bytes) -> Breaking:
    return reordered(
        lambda members: [
            (n, content if i < 2 and n.endswith(suffix) else data) for i, (n, data) in enumerate(members)
        ]
    )


def reordered(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> Breaking:
    """Write the shard's members again as `change` wants them."""

    def breaking(path: Path) -> None:
        with tarfile.open(path) as old:
            members = [(m.name, old.extractfile(m).read()) for m in old.getmembers()]  # type: ignore[union-attr]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as new:
            for name, data in change(members):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
        path.write_bytes(out.getvalue())

    return breaking
