"""The stream over real tars: exact, elastic, bounded, and clear about what is broken."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_sets import COUNTS, SIZE, take, write_set
from toy_streams import K, P, joined, of_all_ranks, same, stream

import sparface.shards.set as sets
from sparface.errors import UserError
from sparface.shards import Batch, ShardSet
from sparface.shards.index import ShardFile


def test_batches_are_what_they_say(toy: ShardSet, reference: list[Batch]) -> None:
    labels = {face.key: toy.identities.index(face.identity) for face in toy.faces()}
    for number, batch in enumerate(reference):
        assert len(batch) == P * K
        assert batch.images.shape == (P * K, 3, *SIZE)
        assert (batch.images.dtype, batch.labels.dtype, batch.positions.dtype) == (
            torch.uint8,
            torch.int64,
            torch.int64,
        )
        assert batch.positions.tolist() == list(range(number * P * K, (number + 1) * P * K))
        assert batch.labels.tolist() == [labels[key] for key in batch.keys]
        assert batch.images[:, 0, 0, 0].tolist() == [int(key[1:]) % 251 for key in batch.keys]
        assert (batch.labels.view(P, K) == batch.labels.view(P, K)[:, :1]).all()
        assert batch.bad == []


def test_each_epoch_covers_all_faces(toy: ShardSet) -> None:
    one = stream(toy)
    assert one.epoch_images == sum(-(-count // K) for count in COUNTS) * K
    keys = joined(take(iter(one), 3 * one.epoch_images // (P * K) + 3))[0]
    everyone = {face.key for face in toy.faces()}
    for epoch in range(3):
        assert set(keys[epoch * one.epoch_images : (epoch + 1) * one.epoch_images]) == everyone
    assert keys[: one.epoch_images] != keys[one.epoch_images : 2 * one.epoch_images]


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 0), (2, 2), (4, 0)])
def test_ranks_and_workers_do_not_change_the_batches(
    toy: ShardSet, reference: list[Batch], world: int, workers: int
) -> None:
    assert same(of_all_ranks(toy, world, workers, 9), reference[:9])


@pytest.mark.parametrize(("worlds", "workers"), [((1, 2, 1), (0, 1, 2)), ((2, 4, 1), (2, 0, 1))])
def test_resumed_in_mid_epoch_at_another_world_size(
    toy: ShardSet, reference: list[Batch], worlds: tuple[int, ...], workers: tuple[int, ...]
) -> None:
    seen: list[Batch] = []
    for number, (world, count) in enumerate(zip(worlds, workers, strict=True)):
        images_seen = number * 3 * P * K
        seen += of_all_ranks(toy, world, count, 3, images_seen=images_seen)
    assert same(seen, reference[:9])


@pytest.mark.parametrize(
    ("together", "world", "workers", "lanes"), [(2, 1, 0, 1), (4, 2, 0, 1), (4, 4, 2, 1), (2, 4, 0, 2)]
)
def test_interleaved_groups_are_the_same_faces_in_turn(
    toy: ShardSet, together: int, world: int, workers: int, lanes: int
) -> None:
    keys, labels, positions, images = joined(take(iter(stream(toy, lanes=lanes)), 9))
    order = torch.arange(len(keys)).view(-1, together, K).transpose(1, 2).flatten().tolist()
    found = joined(of_all_ranks(toy, world, workers, 9, interleave=together, lanes=lanes))
    assert found[:3] == ([keys[row] for row in order], [labels[row] for row in order], positions)
    assert torch.equal(found[3], images[order])


@pytest.mark.parametrize("lanes", [2, 4])
def test_lanes_fill_their_part_and_are_elastic(toy: ShardSet, lanes: int) -> None:
    whole = take(iter(stream(toy, lanes=lanes)), 20)
    assert same(of_all_ranks(toy, 2, 0, 20, lanes=lanes), whole)
    assert same(of_all_ranks(toy, 4, 0, 20, lanes=lanes), whole)
    files: list[set[str]] = []
    shard_of = {key: number for number in range(len(toy.manifest.shards)) for key in _keys(toy, number)}
    for lane in range(lanes):
        part = slice(lane * P * K // lanes, (lane + 1) * P * K // lanes)
        files.append({str(shard_of[key]) for batch in whole for key in batch.keys[part]})
    assert sum(len(one) for one in files) == len(set.union(*files)) == len(toy.manifest.shards)


def _keys(shard_set: ShardSet, number: int) -> list[str]:
    with shard_set.shard(number) as shard:
        return [shard.key(sample) for sample in range(len(shard))]


def test_lanes_cover_everything(toy: ShardSet) -> None:
    one = stream(toy, lanes=2)
    keys = joined(take(iter(one), 2 * one.epoch_images // (P * K)))[0]
    assert set(keys) == {face.key for face in toy.faces()}


def test_the_global_random_state_is_neither_used_nor_moved(toy: ShardSet, reference: list[Batch]) -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert same(take(iter(stream(toy)), 3), reference[:3])
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        torch.get_rng_state().tolist(),
    )


def test_few_shards_are_open_at_once(toy: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: set[int] = set()
    most = 0
    original = ShardFile.close

    def shard(self: ShardSet, number: int) -> Any:
        nonlocal most
        file = ShardFile(self.folder, self.manifest.shards[number], self.manifest.encoding)
        opened.add(id(file))
        most = max(most, len(opened))
        return file

    def close(self: Any) -> None:
        opened.discard(id(self))
        original(self)

    monkeypatch.setattr(ShardSet, "shard", shard)
    monkeypatch.setattr(ShardFile, "close", close)
    batches = iter(stream(toy, window=2, lanes=2))
    take(batches, 30)
    assert 2 <= most <= 4
    batches.close()  # type: ignore[attr-defined]
    assert not opened


def test_batch_moves_and_stream_pickles(toy: ShardSet, reference: list[Batch]) -> None:
    batch = reference[0].to("cpu")
    assert torch.equal(batch.images, reference[0].images)
    assert batch.keys == reference[0].keys
    assert same(take(iter(pickle.loads(pickle.dumps(stream(toy)))), 2), reference[:2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"world_size": 3}, "identities_per_batch: 4 is not allowed; must be a multiple of the 3 processes"),
        ({"lanes": 3}, "data.lanes: 3 is not allowed; must divide"),
        ({"lanes": 64, "identities_per_batch": 64}, "has only 7 shards"),
        ({"images_seen": 7}, "images seen: 7 is not a multiple"),
        ({"images_per_identity": 0}, "data.images_per_identity: 0 is not allowed"),
        ({"identities_per_batch": 0}, "data.identities_per_batch: 0 is not allowed"),
        ({"window": 0}, "data.window: 0 is not allowed"),
        ({"seed": -1}, "training.seed: -1 is not allowed"),
        ({"rank": 1}, "rank: 1 is not allowed"),
    ],
)
def test_bad_settings_name_the_key(toy: ShardSet, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        stream(toy, **settings)


def test_faces_are_found_at_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_set = write_set(tmp_path / "set")
    everything = [face.key for face in shard_set.faces()]
    wanted = [50, 3, 3, 17, 0, 18, 5]
    found = [(place, face.key) for place, face in shard_set.faces_at(wanted)]
    assert found == [(place, everything[place]) for place in sorted(set(wanted))]
    assert list(shard_set.faces_at([])) == []
    find = ShardFile._find

    def refuse(self: ShardFile, *_: Any) -> None:
        raise AssertionError("the headers are read again")

    monkeypatch.setattr(ShardFile, "_find", refuse)
    assert [(place, face.key) for place, face in shard_set.faces_at(wanted)] == found
    monkeypatch.setattr(ShardFile, "_find", find)
    monkeypatch.setattr(sets, "INDEXED", 12)  # only the last two shards of six or more are kept
    list(shard_set.faces_at(range(51)))
    assert shard_set._indexes._samples == sum(len(i.keys) for i in shard_set._indexes._kept.values()) <= 12
