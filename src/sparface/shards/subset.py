"""Take a part of a shard set: some people, with some photos of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparface.errors import UserError
from sparface.shards.order import permutation
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter


def write_subset(source: str | Path, out: Path, people: int, photos: int, seed: int = 0) -> ShardSet:
    """Write the faces of `people` identities, up to `photos` of each, as a new shard set (PNG, so unchanged).

    People and photos are drawn with the seed. A smaller subset with the same seed is part of a larger one:
    its people are among theirs, and its photos of them, too. Raises `UserError` if the set has fewer people.
    """
    whole = ShardSet.open(source)
    known = len(whole.identities)
    if not 0 < people <= known or photos < 1:
        raise UserError(
            f"{source}: cannot take {people} people × {photos} photos; it has {known} people, and each needs "
            "at least 1 photo"
        )
    chosen = drawn(whole, people, photos, seed)
    provenance = {
        "maker": "sparface shards subset",
        "source": whole.manifest.name,
        "source_digest": whole.digest,
        **{"people": people, "photos": photos, "seed": seed},
    }
    name, manifest = out.absolute().name, whole.manifest
    with ShardSetWriter(
        out, name=name, size=manifest.size, provenance=provenance, licence=manifest.licence
    ) as writer:
        done = writer.resumed or 0
        for number, (_, face) in enumerate(whole.faces_at(chosen[done:]), start=done + 1):
            writer.add(face, number)
    return ShardSet.open(out)


def drawn(whole: ShardSet, people: int, photos: int, seed: int) -> list[int]:
    """Return the positions of the chosen faces, in the order of the set."""
    labels = np.concatenate([np.repeat(one.runs[:, 0], one.runs[:, 1]) for one in whole.manifest.shards])
    found: list[int] = []
    for label in permutation((seed,), len(whole.identities))[:people].tolist():
        places = np.flatnonzero(labels == label)
        found += places[permutation((seed, label), len(places))[:photos]].tolist()
    return sorted(found)
