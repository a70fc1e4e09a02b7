"""Streams of sets with broken faces or shards: named, and skipped where that is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from toy_sets import SIZE, break_image, retar, take, write_set
from toy_streams import of_all_ranks, same, stream

from sparface.errors import UserError
from sparface.shards import Loader, ShardSet


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_face_stops_the_run_with_its_name(tmp_path: Path, workers: int) -> None:
    shard_set = write_set(tmp_path / "set")
    (key,) = break_image(shard_set.folder, 1, lambda image: image == 2)
    with pytest.raises(UserError) as error:
        take(iter(Loader(stream(ShardSet.open(shard_set.folder)), workers=workers)), 9)
    message = str(error.value)
    assert f"toy-000001.tar: sample {key} cannot be decoded" in message
    assert "\n" not in message
    assert type(error.value) is UserError


def test_skip_replaces_by_the_same_identity_and_names_it(tmp_path: Path, toy: ShardSet) -> None:
    folder = write_set(tmp_path / "set").folder
    broken = set(break_image(folder, 2, lambda image: image % 5 == 1))
    shard_set = ShardSet.open(folder)
    whole = take(iter(stream(shard_set, on_bad_sample="skip", max_bad_share=0.5)), 12)
    halves = of_all_ranks(shard_set, 2, 2, 12, on_bad_sample="skip", max_bad_share=0.5)
    assert same(whole, halves)
    for batch, sound in zip(whole, take(iter(stream(toy)), 12), strict=True):
        assert batch.labels.tolist() == sound.labels.tolist()
        lost = [key for key in sound.keys if key in broken]
        assert [key for key, was in zip(batch.keys, sound.keys, strict=True) if key != was] == [
            key for key, was in zip(batch.keys, sound.keys, strict=True) if was in broken
        ]
        assert not broken & set(batch.keys)
        assert all(any(f"sample {key} " in bad for bad in batch.bad) for key in lost)
    assert any(batch.bad for batch in whole)


def test_too_many_broken_faces_stop_the_run(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set").folder
    for shard in range(4):
        break_image(folder, shard, lambda image: image % 2 == 1)
    with pytest.raises(UserError, match=r"of \d+ faces were broken, more than data.max_bad_share \(0.1\)"):
        take(iter(stream(ShardSet.open(folder), on_bad_sample="skip", max_bad_share=0.1)), 50)


def test_a_run_without_a_sound_face_stops_the_run(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", counts=(2, 4, 3)).folder
    break_image(folder, 0, lambda image: image < 2)
    with pytest.raises(UserError, match="all other faces of its run are broken"):
        take(iter(stream(ShardSet.open(folder), on_bad_sample="skip", max_bad_share=1)), 5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_tar_stops_the_run_even_with_skip(tmp_path: Path, workers: int) -> None:
    folder = write_set(tmp_path / "set").folder
    path = folder / "toy-000003.tar"
    os.truncate(path, path.stat().st_size // 2)
    batches = iter(Loader(stream(ShardSet.open(folder), on_bad_sample="skip"), workers=workers))
    with pytest.raises(UserError, match=r"toy-000003.tar: is truncated: \d+ bytes, the manifest says"):
        take(batches, 9)


def test_an_image_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set").folder
    big = next(
        iter(stream(write_set(tmp_path / "big", counts=(1,))))
    )  # any valid PNG, then its size is changed
    assert big.images.shape[2:] == SIZE

    def widen(member: Any, data: bytes) -> bytes:
        return (
            data if member.name.endswith(".json") else data[:16] + (60000).to_bytes(4, "big") * 2 + data[24:]
        )

    for shard in range(len(ShardSet.open(folder).manifest.shards)):
        retar(folder, shard, widen)
    with pytest.raises(UserError, match="sample k"):
        next(iter(stream(ShardSet.open(folder))))
