"""A part of a shard set: so many people and photos, the same faces, and smaller parts within larger ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sparface import cli
from sparface.errors import UserError
from sparface.shards import ShardSet, write_subset


def test_a_subset_has_so_many_people_and_photos_unchanged(faces: Path, tmp_path: Path) -> None:
    whole = {face.key: face for face in ShardSet.open(faces).faces()}
    part = list(write_subset(faces, tmp_path / "part", 5, 3).faces())
    assert Counter(Counter(face.identity for face in part).values()) == {3: 5}
    for face in part:
        source = whole[face.key]
        assert (face.identity, face.source, face.meta) == (source.identity, source.source, source.meta)
        assert np.array_equal(face.image, source.image)


def test_smaller_subsets_are_parts_of_larger_ones_and_seeds_differ(faces: Path, tmp_path: Path) -> None:
    def keys(people: int, photos: int, seed: int = 0) -> set[str]:
        found = write_subset(faces, tmp_path / f"{people}-{photos}-{seed}", people, photos, seed)
        return {face.key for face in found.faces()}

    middle = keys(5, 3)
    assert keys(3, 3) < middle < keys(5, 5)
    assert middle != keys(5, 3, seed=1)
    assert len(keys(12, 100)) == 72, "a person with fewer photos keeps all of them"


def test_more_people_than_there_are_is_refused(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot take 13 people × 3 photos; it has 12 people"):
        write_subset(faces, tmp_path / "part", 13, 3)
    assert cli.main(["shards", "subset", str(faces), str(tmp_path / "p"), "--people=2", "--photos=0"]) == 2
