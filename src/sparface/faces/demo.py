"""Demo faces: labelled drawings, so the demo and the tests need neither downloads nor real people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.faces.drawing import draw
from sparface.faces.people import person, scene
from sparface.faces.photos import set_name
from sparface.shards.format import Face
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter


def demo_face(seed: int, identity: int, image: int, size: int) -> Face:
    """Draw one labelled face; a pure function of its arguments."""
    view = scene(seed, identity, image)
    meta: dict[str, Any] = {"method": "drawn", "seed": seed, "occlusion": view.occlusion}
    name = f"demo-{seed}-{identity:05d}"
    pixels = draw(person(seed, identity), view, size)
    return Face(f"{name}-{image:04d}", pixels, name, f"{name}/{image:04d}", meta)


def demo_faces(
    identities: int, images: int, *, size: int, seed: int, first_identity: int = 0
) -> Iterator[Face]:
    """Draw `images` faces of each of `identities` people, one person after another.

    Faces are uint8 [size, size, 3]. People are numbered from `first_identity`; use it to keep training and
    validation identities disjoint. Raises `UserError` for an argument out of range.
    """
    if identities < 1 or images < 1 or not 32 <= size <= 1024 or seed < 0 or first_identity < 0:
        raise UserError(
            f"demo faces: identities {identities}, images {images}, size {size}, seed {seed} not allowed; "
            "use at least 1 identity and image, 32 to 1024 pixels and no negative numbers"
        )
    for identity in range(first_identity, first_identity + identities):
        for image in range(images):
            yield demo_face(seed, identity, image, size)


def write_demo_set(
    folder: Path, identities: int, images: int, size: int, seed: int, first_identity: int = 0
) -> ShardSet:
    """Write demo faces as a shard set named after its folder. Call it again to resume."""
    arguments = {"identities": identities, "images": images, "seed": seed, "first_identity": first_identity}
    provenance = {"maker": "sparface demo faces", **arguments}
    name = set_name(Path(folder))
    with ShardSetWriter(
        folder, name=name, size=(size, size), provenance=provenance, licence="CC0-1.0"
    ) as writer:
        done = writer.resumed or 0
        faces = demo_faces(identities, images, size=size, seed=seed, first_identity=first_identity)
        for number, face in enumerate(faces, start=1):
            if number > done:
                writer.add(face, number)
    return ShardSet.open(folder)
