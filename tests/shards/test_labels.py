"""Labels besides the identity: kept in sets and their parts, listed in the manifest, and streamed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_sets import edit_manifest, faces, retar, take, writer

from sparface import cli
from sparface.errors import UserError
from sparface.shards import Face, FaceStream, Loader, ShardSet, describe, split, verify, write_subset
from sparface.shards.labels import MAX_CLASSES

MOODS = ("sad", "calm", "glad")


def mood(key: str) -> str:
    return MOODS[int(key.removeprefix("k")) % 3]


def labelled(size: tuple[int, int] = (16, 12)) -> list[Face]:
    return [replace(face, meta=face.meta | {"mood": mood(face.key)}) for face in faces(size=size)]


def write(folder: Path, given: list[Face] | None = None, **settings: Any) -> ShardSet:
    with writer(folder, columns=["mood"], **settings) as shards:
        done = -1 if shards.resumed is None else shards.resumed
        for number, face in enumerate(given or labelled()):
            if number > done:
                shards.add(face, progress=number)
    return ShardSet.open(folder)


@pytest.fixture
def toy(tmp_path: Path) -> ShardSet:
    return write(tmp_path / "toy")


def test_the_manifest_lists_classes_with_their_numbers(toy: ShardSet) -> None:
    counts = Counter(face.meta["mood"] for face in toy.faces())
    assert toy.manifest.labels == {"mood": dict(sorted(counts.items()))}
    assert toy.classes("mood") == ["calm", "glad", "sad"]
    assert toy.classes("identity") == list(toy.manifest.identities)
    assert verify(toy.folder) == []
    assert "mood         17 calm, 17 glad, 17 sad" in describe(toy.folder)


def test_an_interrupted_write_counts_all(toy: ShardSet, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    with pytest.raises(Stop), writer(tmp_path / "again" / "toy", columns=["mood"]) as shards:
        for number, face in enumerate(labelled()):
            shards.add(face, progress=number)
            if number == 30:
                raise Stop
    assert write(tmp_path / "again" / "toy").manifest.to_json() == toy.manifest.to_json()


def test_a_set_without_the_label_is_named(toy: ShardSet, tmp_path: Path) -> None:
    for label, given, message in (
        ("age", labelled(), r"its faces do not have the label age; align the photos again from a CSV"),
        ("mood", [*labelled()[:-1], list(faces())[-1]], r"only 50 of 51 faces have the label mood"),
    ):
        folder = tmp_path / label
        write(folder, given)
        with pytest.raises(UserError, match=message):
            FaceStream(
                ShardSet.open(folder), identities_per_batch=2, images_per_identity=2, seed=0, label=label
            )


def test_a_column_of_very_many_values_is_kept_but_not_listed(tmp_path: Path) -> None:
    given = [
        Face(f"k{n}", face.image, face.identity, face.source, {"mood": f"day {n}"})
        for n, face in enumerate([next(faces())] * (MAX_CLASSES + 1))
    ]
    found = write(tmp_path / "toy", given, shard_samples=600)
    assert found.manifest.labels == {} and next(found.faces()).meta == {"mood": "day 0"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_gives_the_label_of_each_face(toy: ShardSet, workers: int) -> None:
    stream = FaceStream(toy, identities_per_batch=4, images_per_identity=3, seed=1, label="mood")
    for batch in take(iter(Loader(stream, workers=workers)), 8):
        assert [toy.classes("mood")[label] for label in batch.labels.tolist()] == list(map(mood, batch.keys))


def test_subsets_and_splits_keep_labels(toy: ShardSet, tmp_path: Path) -> None:
    first, second = (split(toy.folder, tmp_path / f"{rest}", share=0.5, rest=rest) for rest in (False, True))
    for part in (write_subset(toy.folder, tmp_path / "part", 5, 3), first, second):
        counts = Counter(face.meta["mood"] for face in part.faces())
        assert part.manifest.labels == {"mood": dict(sorted(counts.items()))} and verify(part.folder) == []


def test_a_split_by_people_shares_nobody_and_one_by_photos_no_photo(toy: ShardSet, tmp_path: Path) -> None:
    keys = {face.key for face in toy.faces()}
    for by, seed in (("people", 0), ("photos", 0), ("photos", 1)):
        out = [tmp_path / f"{by}-{seed}-{part}" for part in "ab"]
        options = ["--share=0.75", f"--by={by}", f"--seed={seed}"]
        for folder, rest in zip(out, ([], ["--rest"]), strict=True):
            assert cli.main(["shards", "split", str(toy.folder), str(folder), *options, *rest]) == 0
        first, second = (list(ShardSet.open(folder).faces()) for folder in out)
        assert {f.key for f in first} | {f.key for f in second} == keys
        assert not {f.key for f in first} & {f.key for f in second}
        shared = {f.identity for f in first} & {f.identity for f in second}
        if by == "people":
            assert not shared and len({f.identity for f in first}) == 9  # of 12
        else:
            assert shared and len(first) == 38  # of 51
    one, other = (ShardSet.open(tmp_path / f"photos-{seed}-a") for seed in (0, 1))
    assert {f.key for f in one.faces()} != {f.key for f in other.faces()}


@pytest.mark.parametrize("share", ["0", "1", "nan", "0.001"])
def test_a_split_that_leaves_nothing_is_refused(toy: ShardSet, tmp_path: Path, share: str) -> None:
    words = ["shards", "split", str(toy.folder), str(tmp_path / "a"), f"--share={share}"]
    assert cli.main(words) == 2
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "labels",
    [
        [],
        {"mood": {"sad": 60}},
        {"mood": {"sad": True}},
        {"mood": {"sad": 0}},
        {"mood": {"sad": "many"}},
        {"mood": {"\n": 1}},
        {"mood": {}},
        {"box": {"sad": 1}},
        {"a b": {"sad": 1}},
        {f"c{n}": {"sad": 1} for n in range(17)},
    ],
    ids=str,
)
def test_a_manifest_with_broken_labels_is_refused(toy: ShardSet, labels: Any) -> None:
    edit_manifest(toy.folder, lambda m: m.update(labels=labels))
    with pytest.raises(UserError, match=r"manifest\.json: \'labels\' has an invalid value"):
        ShardSet.open(toy.folder)


@pytest.mark.parametrize("value", [None, ["sad"], "angry"])
def test_a_face_whose_label_the_manifest_does_not_list_is_named(toy: ShardSet, value: Any) -> None:
    def change(member: Any, data: bytes) -> bytes:
        document = json.loads(data) if member.name.endswith(".json") else None
        return data if document is None else json.dumps(document | {"mood": value}).encode()

    retar(toy.folder, 0, change)
    assert any("other labels than the manifest says" in line for line in verify(toy.folder))
    stream = FaceStream(
        ShardSet.open(toy.folder), identities_per_batch=4, images_per_identity=3, seed=1, label="mood"
    )
    with pytest.raises(UserError, match=r"toy-000000.tar: sample k\d+ has no mood that the manifest lists"):
        take(iter(stream), 20)


def test_columns_that_cannot_be_labels_are_refused(tmp_path: Path) -> None:
    for column, message in (("box", "box has another meaning"), ("a b", "a b is not 1 to 64 letters")):
        with pytest.raises(UserError, match=message):
            writer(tmp_path / "toy", columns=[column])
    broken = [replace(face, meta={"mood": "\x07"}) for face in faces()]
    with pytest.raises(UserError, match=r"face k00000: mood '\\x07' is not 1 to 200 printable characters"):
        write(tmp_path / "toy", broken)
