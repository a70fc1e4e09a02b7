"""Take a part of a shard set: some people, with some photos of each; or split it in two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparface.errors import UserError
from sparface.shards.format import Face, set_name
from sparface.shards.order import permutation
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter


def write_subset(source: str | Path, out: Path, people: int, photos: int, seed: int = 0) -> ShardSet:
    """Write the faces of `people` identities, up to `photos` of each, as a new shard set (PNG, so unchanged).

    People and photos are drawn with the seed. A smaller subset with the same seed is part of a larger one:
    its people are among theirs, and its photos of them, too. Raises `UserError` if the set has fewer people.
    """
    _require_seed(seed)
    whole = ShardSet.open(source)
    known = len(whole.identities)
    if not 0 < people <= known or photos < 1:
        raise UserError(
            f"{source}: cannot take {people} people × {photos} photos; it has {known} people, and each needs "
            "at least 1 photo"
        )
    settings = {"people": people, "photos": photos, "seed": seed}
    return _write(whole, drawn(whole, people, photos, seed), out, "sparface shards subset", settings)


By = Literal["people", "photos"]
"""What a split divides: with `people`, nobody is in both parts."""


def split(
    source: str | Path, out: Path, *, share: float = 0.8, by: By = "people", seed: int = 0, rest: bool = False
) -> ShardSet:
    """Write a random `share` of the people of a shard set, or of its photos, as a new set; with `rest`, write
    the others.

    Raises `UserError` if the share is not between 0 and 1, or takes nothing or everything.
    """
    _require_seed(seed)
    whole = ShardSet.open(source)
    labels = whole.owners
    count = len(whole.identities) if by == "people" else len(labels)
    taken = round(share * count) if 0 < share < 1 else 0
    if not 0 < taken < count:
        raise UserError(f"--share: {share:g} of {count} {by} leaves one of the parts empty; change it")
    chosen = permutation((seed,), count)[:taken]
    is_chosen = np.isin(labels if by == "people" else np.arange(count), chosen)
    settings = {"share": share, "by": by, "seed": seed, "rest": rest}
    return _write(whole, np.flatnonzero(is_chosen ^ rest).tolist(), out, "sparface shards split", settings)


def _require_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"--seed: {seed} is not allowed; must not be negative")


def _write(
    whole: ShardSet, chosen: Sequence[int], out: Path, maker: str, settings: Mapping[str, Any]
) -> ShardSet:
    """Write some faces of a set as a new one: in its order, but for people whose faces are scattered, as in a
    made set of several shards."""
    name, manifest = set_name(out), whole.manifest
    provenance = {"maker": maker, "source": manifest.name, "source_digest": whole.digest, **settings}
    if "content" in manifest.provenance:  # that nobody in it is real, for example
        provenance["content"] = manifest.provenance["content"]
    with ShardSetWriter(
        out,
        name=name,
        size=manifest.size,
        provenance=provenance,
        licence=manifest.licence,
        columns=list(manifest.labels),
    ) as writer:
        done = writer.resumed or 0
        for number, face in enumerate(_by_person(whole, chosen, done), start=done + 1):
            writer.add(face, number)
    return ShardSet.open(out)


def _by_person(whole: ShardSet, chosen: Sequence[int], done: int) -> Iterator[Face]:
    """The chosen faces after the first `done`, person by person in the order of their first face."""
    labels, places = whole.owners, np.array(chosen, np.int64)
    _, first = np.unique(labels, return_index=True)
    places = places[np.lexsort((places, first[labels[places]]))][done:]
    for ascending in np.split(places, np.flatnonzero(np.diff(places) < 0) + 1):  # one, if nobody is scattered
        yield from (face for _, face in whole.faces_at(ascending))


def drawn(whole: ShardSet, people: int, photos: int, seed: int) -> list[int]:
    """Return the positions of the chosen faces, in the order of the set."""
    labels = whole.owners
    found: list[int] = []
    for label in permutation((seed,), len(whole.identities))[:people].tolist():
        places = np.flatnonzero(labels == label)
        found += places[permutation((seed, label), len(places))[:photos]].tolist()
    return sorted(found)
