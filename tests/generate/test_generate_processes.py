"""Real processes on one folder: parts in any order, kills, stops, a full disk, a set verified by its bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from made_sets import SMALL, command, digests, make, start
from sparface.errors import UserError
from sparface.generate import run
from sparface.generate.settings import GenerateConfig
from sparface.shards import ShardSet


def test_parts_in_any_order_give_the_same_bytes(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    for index in (2, 0):
        assert make(sparring_run, faces, out, part=f"{index}/3") is None
    assert make(sparring_run, faces, out, part="1/3") is not None
    assert digests(out) == digests(made.folder)


def test_two_processes_at_once_give_the_same_bytes(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    """As torchrun starts them; and two that make the same part do not disturb each other."""
    out = tmp_path / "set"
    ranks = [("0", "2"), ("1", "2"), ("1", "2")]
    started = [
        start(sparring_run, faces, out, RANK=rank, WORLD_SIZE=world, LOCAL_WORLD_SIZE="2")
        for rank, world in ranks
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert digests(out) == digests(made.folder)
    assert not list(out.rglob("*.partial"))


def test_killed_twice_it_goes_on_and_makes_nothing_twice(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    out, rng = tmp_path / "set", random.Random(1)
    times: dict[Path, int] = {}
    for target in (3, 8):
        process = start(sparring_run, faces, out)
        _wait(process, out, target)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert not (out / "manifest.json").exists()
        finished = {path: path.stat().st_mtime_ns for path in out.glob("units/0*.json")}
        assert len(finished) >= target and times.items() <= finished.items()
        times = finished
    (out / "set-000014.tar.elsewhere-1.partial").write_bytes(b"another machine's, perhaps alive")
    assert make(sparring_run, faces, out) is not None
    assert digests(out) == digests(made.folder)
    assert times.items() <= {path: path.stat().st_mtime_ns for path in times}.items()
    assert [path.name for path in out.rglob("*.partial")] == ["set-000014.tar.elsewhere-1.partial"]


def _wait(process: subprocess.Popen[str], out: Path, units: int) -> None:
    for _ in range(6000):
        if len(list(out.glob("units/0*.json"))) >= units:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it never got there")


def test_sigterm_ends_it_with_75_and_it_goes_on(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    process = start(sparring_run, faces, tmp_path / "set")
    _wait(process, tmp_path / "set", 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped by SIGTERM; run the same command to resume" in errors
    assert not list((tmp_path / "set").rglob("*.partial"))
    assert make(sparring_run, faces, tmp_path / "set") is not None
    assert digests(tmp_path / "set") == digests(made.folder)


def test_one_missing_shard_is_made_again_alone(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    make(sparring_run, faces, out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    gone = out / "set-000007.tar"
    gone.unlink()
    make(sparring_run, faces, out)
    assert digests(out) == digests(made.folder)
    assert [path for path, at in kept.items() if path.stat().st_mtime_ns != at] == [gone]


def test_other_settings_and_other_sets_are_refused(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    for other in ({"seed": 1}, {"noise": 0.5}, {"filter": {"change": 1.0}}):
        with pytest.raises(UserError, match="made with other settings") as error:
            make(sparring_run, faces, made.folder, **other)
        assert next(iter(other)) in str(error.value)
    with pytest.raises(UserError, match="contains other shards; use a new folder"):
        make(sparring_run, faces, faces)


def test_verify_compares_bits_and_names_the_shard(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    make(sparring_run, faces, out)
    job = run.open_job(sparring_run, faces, out, GenerateConfig(**SMALL))
    assert run.verify(job, 0.2) == 3
    shard = out / "set-000004.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    found = subprocess.run(
        command(sparring_run, faces, out, "--verify=1"), capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert f"{shard}: changed since it was written" in found.stderr and "Traceback" not in found.stderr
    # a shard that came from elsewhere, with a record that agrees with it
    record = out / "units" / "000004.json"
    document = json.loads(record.read_bytes())
    document["shard"]["sha256"] = digests(out)[shard.name]
    record.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"set-000004.tar: differs when made again"):
        run.verify(job, 1.0)


def test_finish_names_what_is_missing(sparring_run: Path, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make(sparring_run, faces, out, part="0/3")
    job = run.open_job(sparring_run, faces, out, GenerateConfig(**SMALL))
    with pytest.raises(UserError, match=r"10 of 15 shards are missing, first set-000005\.tar"):
        run.finish(job)


def test_a_full_disk_is_one_clear_line_and_a_rerun_completes(
    made: ShardSet, sparring_run: Path, faces: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("600k")
    out = disk / "set"
    process = start(sparring_run, faces, out)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    assert f"{out}: the disk is full; make room and run the same command again" in errors
    finished = len(list(out.glob("*.tar")))
    assert 0 < finished < 15
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    assert make(sparring_run, faces, out) is not None
    assert digests(out) == digests(made.folder)


def test_memory_is_flat(sparring_run: Path, faces: Path, tmp_path: Path) -> None:
    """Resident memory after the first shards and after eight times as many."""
    process = start(sparring_run, faces, tmp_path / "set", "--factor=60")
    watched = psutil.Process(process.pid)
    _wait(process, tmp_path / "set", 20)
    early = watched.memory_info().rss
    _wait(process, tmp_path / "set", 160)
    late = watched.memory_info().rss
    process.kill()
    process.communicate()
    assert late - early < 30e6, f"{early / 1e6:.0f} → {late / 1e6:.0f} MB"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_bits(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        make(sparring_run, faces, tmp_path / "set", part="0/3")
    finally:
        torch.set_num_threads(before)
    found = digests(tmp_path / "set")
    assert len(found) == 5 and found.items() <= digests(made.folder).items()
