"""The stream over real tars: exact, elastic, bounded, and clear about what is broken."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_sets import COUNTS, SIZE, break_image, edit_manifest, retar, take, write_set

import sparface.shards.set as sets
from sparface.errors import UserError
from sparface.shards import Batch, FaceStream, Loader, ShardSet
from sparface.shards.index import ShardFile

FORK = multiprocessing.get_context("fork")
P, K = 4, 3


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_set(tmp_path_factory.mktemp("shards") / "toy")


def stream(shard_set: ShardSet, **settings: Any) -> FaceStream:
    known = {"identities_per_batch": P, "images_per_identity": K, "seed": 3, "window": 3}
    return FaceStream(shard_set, **(known | settings))


def joined(batches: list[Batch]) -> tuple[list[str], list[int], list[int], torch.Tensor]:
    return (
        [key for batch in batches for key in batch.keys],
        [label for batch in batches for label in batch.labels.tolist()],
        [position for batch in batches for position in batch.positions.tolist()],
        torch.cat([batch.images for batch in batches]),
    )


def same(first: list[Batch], second: list[Batch]) -> bool:
    a, b = joined(first), joined(second)
    return a[:3] == b[:3] and torch.equal(a[3], b[3])


def interleaved(shard_set: ShardSet, world: int, workers: int, steps: int, **settings: Any) -> list[Batch]:
    """The batches of all ranks, in the order rank 0, rank 1, ... of each step."""
    ranks = [
        take(iter(Loader(stream(shard_set, rank=r, world_size=world, **settings), workers=workers)), steps)
        for r in range(world)
    ]
    return [batch for step in zip(*ranks, strict=True) for batch in step]


@pytest.fixture(scope="module")
def reference(toy: ShardSet) -> list[Batch]:
    return take(iter(stream(toy)), 24)


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
    assert same(interleaved(toy, world, workers, 9), reference[:9])


@pytest.mark.parametrize(("worlds", "workers"), [((1, 2, 1), (0, 1, 2)), ((2, 4, 1), (2, 0, 1))])
def test_resumed_in_mid_epoch_at_another_world_size(
    toy: ShardSet, reference: list[Batch], worlds: tuple[int, ...], workers: tuple[int, ...]
) -> None:
    seen: list[Batch] = []
    for number, (world, count) in enumerate(zip(worlds, workers, strict=True)):
        images_seen = number * 3 * P * K
        seen += interleaved(toy, world, count, 3, images_seen=images_seen)
    assert same(seen, reference[:9])


@pytest.mark.parametrize("lanes", [2, 4])
def test_lanes_fill_their_part_and_are_elastic(toy: ShardSet, lanes: int) -> None:
    whole = take(iter(stream(toy, lanes=lanes)), 20)
    assert same(interleaved(toy, 2, 0, 20, lanes=lanes), whole)
    assert same(interleaved(toy, 4, 0, 20, lanes=lanes), whole)
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
    halves = interleaved(shard_set, 2, 2, 12, on_bad_sample="skip", max_bad_share=0.5)
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


def _read(folder: Path, log: Path, images_seen: int, workers: int) -> None:
    """Read batches and write down each one when it is done with."""
    with log.open("a") as file:
        for batch in Loader(stream(ShardSet.open(folder), images_seen=images_seen), workers=workers):
            time.sleep(0.003)
            file.write(" ".join(batch.keys) + "\n")
            file.flush()


def test_killing_the_reader_anywhere_loses_and_repeats_nothing(
    tmp_path: Path, toy: ShardSet, reference: list[Batch]
) -> None:
    log = tmp_path / "log"
    log.touch()
    rng = random.Random(1)
    for workers in itertools.cycle([0, 1, 2]):
        done = log.read_bytes().count(b"\n")
        os.truncate(log, log.read_bytes().rfind(b"\n") + 1)
        if done >= len(reference):
            break
        process = FORK.Process(target=_read, args=(toy.folder, log, done * P * K, workers))
        process.start()
        goal = done + rng.randint(1, 6)
        while log.read_bytes().count(b"\n") < goal:
            time.sleep(0.002)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    lines = log.read_text().splitlines()[: len(reference)]
    assert [line.split() for line in lines] == [batch.keys for batch in reference]


_MEMORY = """
import sys, torch
from pathlib import Path
from sparface.shards import FaceStream, ShardSet

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def read(folder, epochs):
    stream = FaceStream(ShardSet.open(folder), identities_per_batch=8, images_per_identity=2, seed=0)
    batches = iter(stream)
    for _ in range(int(epochs * stream.epoch_images) // 16):
        next(batches)
    return resident(), batches

torch.set_num_threads(1)
few, kept = read(sys.argv[1], 40)
many, _ = read(sys.argv[2], 1)
print(few, many)
"""


def _many_shards(source: ShardSet, folder: Path, count: int) -> None:
    """A set of `count` shards: links to the source's, which keep their runs."""
    folder.mkdir()
    shards = source.manifest.shards
    for number in range(count):
        os.link(source.folder / shards[number % len(shards)].file, folder / f"toy-{number:06d}.tar")
    (folder / "manifest.json").write_bytes((source.folder / "manifest.json").read_bytes())

    def multiply(document: dict[str, Any]) -> None:
        entries = document["shards"]
        many = [{**entries[n % len(entries)], "file": f"toy-{n:06d}.tar"} for n in range(count)]
        totals: Counter[int] = Counter()
        for entry in many:
            for label, samples in entry["runs"]:
                totals[label] += samples
        document["shards"] = many
        document["identities"] = {name: totals[n] for n, name in enumerate(document["identities"])}

    edit_manifest(folder, multiply)


def test_memory_is_flat_from_10_to_2000_shards(tmp_path: Path) -> None:
    source = write_set(tmp_path / "ten", counts=(2, 1) * 10, shard_samples=3)
    assert len(source.manifest.shards) == 10
    _many_shards(source, tmp_path / "many", 2000)
    command = [sys.executable, "-c", _MEMORY, str(source.folder), str(tmp_path / "many")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = map(int, run.stdout.split())
    assert many - few < 20e6


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
