"""Writing that is killed, fails or finds no room: finished shards are kept, the rest has the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_sets import COUNTS, contents, face, faces, write_set, writer

from sparface.errors import UserError
from sparface.files import write_whole
from sparface.shards import Face, ShardSet, ShardSetWriter, verify
from sparface.shards.journal import Journal

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("count", [0, 1, 8, 9, 17, 30, 50, 51])
def test_an_exception_keeps_finished_shards_and_the_writer_goes_on(tmp_path: Path, count: int) -> None:
    reference = write_set(tmp_path / "reference")
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "set") as shards:
        for number, one in zip(range(count), faces(), strict=False):
            shards.add(one, progress=number)
        raise ZeroDivisionError
    with pytest.raises(UserError, match="is missing, so the shard set is not finished"):
        ShardSet.open(tmp_path / "set")
    write_set(tmp_path / "set")
    assert contents(tmp_path / "set") == contents(reference.folder)


def _write_slowly(folder: Path, pause: float) -> None:
    with writer(folder) as shards:
        done = -1 if shards.resumed is None else shards.resumed
        for number, one in enumerate(faces()):
            if number > done:
                time.sleep(pause)
                shards.add(one, progress=number)


def test_sigkill_anywhere_then_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    reference = write_set(tmp_path / "reference")
    rng = random.Random(0)
    kills = 0
    while not (tmp_path / "set" / "manifest.json").exists():
        process = FORK.Process(target=_write_slowly, args=(tmp_path / "set", 0.05))
        process.start()
        process.join(rng.uniform(0.05, 0.45) if kills < 8 else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
    assert kills >= 2
    assert contents(tmp_path / "set") == contents(reference.folder)


def _crash_at(folder: Path, point: int) -> None:
    """Write, and die without any clean-up at the `point`-th step that touches the disk."""
    steps = iter(range(10**6))

    def mortal(act: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == point:
                os._exit(9)
            return act(*args, **kwargs)

        return step

    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", mortal(os.fsync))
    patch.setattr(Path, "replace", mortal(Path.replace))
    patch.setattr(Path, "unlink", mortal(Path.unlink))
    patch.setattr(Journal, "append", mortal(Journal.append))
    patch.setattr("sparface.shards.writer.write_whole", mortal(write_whole))
    write_set(folder, counts=COUNTS[:3])


def test_a_crash_at_every_single_disk_step_is_mended(tmp_path: Path) -> None:
    reference = contents(write_set(tmp_path / "reference", counts=COUNTS[:3]).folder)
    crashed = 0
    for point in range(100):
        folder = tmp_path / f"set{point}"
        process = FORK.Process(target=_crash_at, args=(folder, point))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
        crashed += 1
        if not (folder / "manifest.json").exists():
            write_set(folder, counts=COUNTS[:3])
        found = contents(folder)
        found.pop("unfinished.jsonl", None)  # all that a crash behind the manifest may leave
        assert found == reference
    assert 10 < crashed < 99


def test_a_torn_journal_line_is_cut_off(tmp_path: Path) -> None:
    reference = write_set(tmp_path / "reference")
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "set") as shards:
        for number, one in zip(range(30), faces(), strict=False):
            shards.add(one, progress=number)
        raise ZeroDivisionError
    journal = tmp_path / "set" / "unfinished.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    write_set(tmp_path / "set")
    assert contents(tmp_path / "set") == contents(reference.folder)


def _write_noise(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with ShardSetWriter(folder, name="noise", size=(64, 64), shard_samples=20) as shards:
        for number in range(200):
            image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            if shards.resumed is None or number > shards.resumed:
                shards.add(Face(f"k{number}", image, f"p{number // 4}", ""), progress=number)


def test_full_disk_is_named_and_the_writer_goes_on_when_there_is_room(
    small_disk: Callable[[str], Path],
) -> None:
    disk = small_disk("1m")
    with pytest.raises(UserError, match=rf"{disk}/set: the disk is full; .*[1-9] finished shards are kept"):
        _write_noise(disk / "set")
    names = {path.name for path in (disk / "set").iterdir()}
    assert "manifest.json" not in names
    assert not any(name.endswith(".partial") for name in names)
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    _write_noise(disk / "set")
    _write_noise(disk / "reference")
    assert contents(disk / "set") == contents(disk / "reference")
    assert verify(disk / "set") == []


def test_the_journal_grows_with_the_notes_and_gives_them_back(tmp_path: Path) -> None:
    """Each note is stored once, however many shards follow."""
    sizes = {}
    for count in (20, 40):
        folder = tmp_path / str(count)
        with pytest.raises(RuntimeError), writer(folder, shard_samples=1) as shards:
            for number in range(count):
                shards.add(face(number, number), number, [f"{number} {'x' * 1000}"])
            raise RuntimeError
        sizes[count] = (folder / "unfinished.jsonl").stat().st_size
        with pytest.raises(RuntimeError), writer(folder, shard_samples=1) as shards:
            assert shards.resumed == count - 2
            assert [note.split()[0] for note in shards.resumed_notes] == list(map(str, range(count - 1)))
            raise RuntimeError
    assert sizes[40] < 2.1 * sizes[20]
