"""Shard sets of drawn people: labelled faces without end, and without any real person."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL

import sparface
from sparface.config import Encoding
from sparface.errors import UserError
from sparface.faces.drawn.drawing import draw
from sparface.faces.drawn.people import person
from sparface.faces.drawn.scenes import scene
from sparface.faces.drawn.wear import worn
from sparface.faces.workers import in_order
from sparface.machine import usable_cores
from sparface.progress import track
from sparface.shards.format import Face, set_name
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter

MAX_FACES = 1_000_000_000
_CHUNK = 32
"""Faces per task of a worker process."""


def drawn_face(seed: int, number: int, photo: int, size: int) -> Face:
    """Draw one labelled face, uint8 [size, size, 3]: a pure function of seed, person, photo and size."""
    who, view = person(seed, number), scene(seed, number, photo)
    meta: dict[str, Any] = {"method": "drawn", "seed": seed, "wears": worn(who, view)}
    name = f"drawn-{seed}-{number:05d}"
    pixels = draw(who, view, size)
    return Face(f"{name}-{photo:04d}", pixels, name, f"{name}/{photo:04d}", meta)


def drawn_faces(people: int, photos: int, *, size: int, seed: int) -> Iterator[Face]:
    """Draw `photos` faces of each of `people` people, one person after another.

    Faces are uint8 [size, size, 3], aligned to ArcFace's template. Another seed gives other people. Raises
    `UserError` for an argument out of range.
    """
    _check(people, photos, size, seed)
    for place in range(people * photos):
        yield drawn_face(seed, *divmod(place, photos), size)


def draw_set(
    out: Path,
    people: int,
    photos: int,
    *,
    size: int,
    seed: int = 0,
    workers: int = 1,
    encoding: Encoding = "png",
    overwrite: bool = False,
) -> ShardSet:
    """Draw `photos` faces of each of `people` people and write them as the shard set `out`.

    The work is spread over `workers` processes (0: one per core, at most 8); the bytes of the set do not
    depend on their number. If it is interrupted, the same call resumes after the last finished shard. Sets of
    different seeds have no person in common.

    Raises `UserError` if an argument is out of range, or `out` contains a finished set and `overwrite` is not
    set.
    """
    out = Path(out)
    _check(people, photos, size, seed)
    with ShardSetWriter(
        out,
        name=set_name(out),
        size=(size, size),
        encoding=encoding,
        provenance=_provenance(people, photos, seed),
        licence="CC0-1.0",
        overwrite=overwrite,
    ) as writer:
        total, done = people * photos, writer.resumed or 0
        chunks = (range(start, min(start + _CHUNK, total)) for start in range(done, total, _CHUNK))
        drawn = in_order(chunks, partial(_ChunkDrawer, photos, size, seed), workers or min(usable_cores(), 8))
        faces = track(chain.from_iterable(drawn), total=total, done=done, unit="faces")
        for number, face in enumerate(faces, start=done + 1):
            writer.add(face, number)
    return ShardSet.open(out)


def _check(people: int, photos: int, size: int, seed: int) -> None:
    for name, value in (("people", people), ("photos", photos)):
        if value < 1:
            raise UserError(f"{name}: {value} is not allowed; must be at least 1")
    if people * photos > MAX_FACES:
        raise UserError(f"people: {people} x {photos} photos are not allowed; at most {MAX_FACES:,} faces")
    if not 32 <= size <= 1024:
        raise UserError(f"size: {size} is not allowed; must be 32 to 1024 pixels")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed: {seed} is not allowed; must be 0 to 2**63 - 1")


def _provenance(people: int, photos: int, seed: int) -> dict[str, Any]:
    """What the faces are, and everything that determines them."""
    return {
        "maker": f"sparface draw {sparface.__version__}, numpy {np.__version__}, Pillow {PIL.__version__}",
        "content": "drawn people, no real person",
        "people": people,
        "photos": photos,
        "seed": seed,
    }


class _ChunkDrawer:
    def __init__(self, photos: int, size: int, seed: int) -> None:
        self._photos, self._size, self._seed = photos, size, seed

    def __call__(self, chunk: range) -> list[Face]:
        return [drawn_face(self._seed, *divmod(place, self._photos), self._size) for place in chunk]
