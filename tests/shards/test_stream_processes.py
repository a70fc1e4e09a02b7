"""Readers that are killed, and the memory that they take."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from toy_sets import edit_manifest, take, write_set
from toy_streams import K, P, stream

from sparface.shards import Batch, Loader, ShardSet
from sparface.shards.loading import PREFETCH

FORK = multiprocessing.get_context("fork")


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
    for workers in cycle([0, 1, 2]):
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


class _Finalized:
    """Garbage that only the collector frees; writes down the process that did it."""

    def __init__(self, log: Path) -> None:
        self.log, self.itself = log, self

    def __del__(self) -> None:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")


def test_workers_leave_the_garbage_of_the_training_process_alone(tmp_path: Path, toy: ShardSet) -> None:
    # a process group that a forked worker finalizes waits for threads which the fork did not copy
    log = tmp_path / "log"
    _Finalized(log)
    take(iter(Loader(stream(toy), workers=2)), 12)
    gc.collect()
    assert log.read_text().split() == [str(os.getpid())]


@pytest.mark.parametrize("held", [1, 6])
def test_memory_of_batches_that_nobody_holds_is_used_again(toy: ShardSet, held: int) -> None:
    batches = iter(Loader(stream(toy), workers=1))
    latest: deque[Batch] = deque(islice(batches, 60), maxlen=held)
    shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/torch_" in line]
    assert len(latest) <= len(shared) <= held + PREFETCH + 1
