"""Small shard sets for the tests, and ways to break them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparface.shards import Batch, Face, ShardSet, ShardSetWriter

SIZE = (16, 12)
COUNTS = (5, 1, 3, 9, 2, 4, 1, 7, 6, 3, 2, 8)
"""Images of each identity in most tests: 51 faces, two identities with a single one."""


def face(number: int, identity: int, size: tuple[int, int] = SIZE) -> Face:
    """A face whose every pixel tells its number."""
    image = np.full((*size, 3), number % 251, np.uint8)
    image[:, :, 1] = identity % 251
    return Face(f"k{number:05d}", image, f"person {identity}", f"photos/{number}.jpg", {"score": number / 8})


def faces(counts: Sequence[int] = COUNTS, size: tuple[int, int] = SIZE) -> Iterator[Face]:
    number = 0
    for identity, count in enumerate(counts):
        for _ in range(count):
            yield face(number, identity, size)
            number += 1


def writer(folder: Path, **settings: Any) -> ShardSetWriter:
    known: dict[str, Any] = {"name": "toy", "size": SIZE, "shard_samples": 6, "licence": "CC0"}
    return ShardSetWriter(folder, **(known | {"provenance": {"made by": "a test"}} | settings))


def write_set(folder: Path, counts: Sequence[int] = COUNTS, **settings: Any) -> ShardSet:
    """Write a set, going on behind what is there already."""
    with writer(folder, **settings) as shards:
        done = -1 if shards.resumed is None else shards.resumed
        for number, one in enumerate(faces(counts, settings.get("size", SIZE))):
            if number > done:
                shards.add(one, progress=number)
    return ShardSet.open(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))


def replace_shard(folder: Path, number: int, data: bytes) -> Path:
    """Put other bytes in a shard's place and make the manifest agree, as an attacker would."""
    path = folder / f"toy-{number:06d}.tar"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_manifest(folder, lambda m: m["shards"][number].update(bytes=len(data), sha256=digest))
    return path


def retar(folder: Path, number: int, change: Callable[[tarfile.TarInfo, bytes], bytes]) -> Path:
    """Write a shard again with each member passed through `change`, which may alter its header."""
    out = io.BytesIO()
    with (
        tarfile.open(folder / f"toy-{number:06d}.tar") as old,
        tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as new,
    ):
        for member in old.getmembers():
            source = old.extractfile(member)
            assert source is not None
            data = change(member, source.read())
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return replace_shard(folder, number, out.getvalue())


def break_image(folder: Path, number: int, which: Callable[[int], bool]) -> list[str]:
    """Make some images of a shard undecodable; their keys."""
    broken: list[str] = []
    images = iter(range(10**9))

    def change(member: tarfile.TarInfo, data: bytes) -> bytes:
        if member.name.endswith(".json") or not which(next(images)):
            return data
        broken.append(member.name.split(".")[0])
        return data[: len(data) // 2]

    retar(folder, number, change)
    return broken


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]
