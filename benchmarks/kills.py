"""Kill `train`, `align`, `generate` and a checkpoint writer at random; compare with undisturbed results.

    python benchmarks/kills.py [--kills N] [--out FOLDER] [--quick]

Each kind of work is done once undisturbed. Then the same command is started repeatedly in one folder, and its
whole process group gets SIGKILL: during start-up, during work (a random time after the attempt has written
its first file), or while something is being written (milliseconds after its temporary name appears). When an
attempt reaches its end, the folder must be bitwise equal to the undisturbed one: the same files; the same
bytes of shards, manifest, rejected photos and of every tensor in the last checkpoints (networks, averages,
optimizers); and the same logged values. Then the next folder is started. After each kill, every checkpoint
with a final name must be intact.

FOLDER/kills.jsonl has a line for each kill and each end, and the same command resumes after an interruption.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from forked import FORK, print_into
from kill_works import Work, damaged, prepare, works

LOOK = 0.004
"""Seconds between two checks of the files on disk."""
WRITING = 0.05
"""A kill "while writing" comes at most this many seconds after the temporary name appears."""
PATIENCE = 300
"""Seconds after which an attempt counts as hanging."""


@dataclass(frozen=True)
class Undisturbed:
    """Results and times of the undisturbed work."""

    found: dict[str, str]
    start_up: float
    """Seconds until the first file appeared."""
    work: float
    """Seconds from then to the end."""


# -- one attempt -------------------------------------------------------------------------------------


def begin(work: Work, out: Path) -> BaseProcess:
    """Start the work in a new process group; its output goes to a log beside its folder."""

    def child() -> None:
        os.setsid()
        print_into(out.with_name(f"{out.name}.log"))
        torch.set_num_threads(1)
        sys.exit(work.start(out))

    out.parent.mkdir(parents=True, exist_ok=True)
    process = FORK.Process(target=child)
    process.start()
    return process


def seen(work: Work, out: Path) -> frozenset[tuple[str, int]]:
    """Names and sizes of the files that the work has written."""
    there = set()
    for pattern in work.watched:
        for path in out.glob(pattern):
            try:
                there.add((path.name, path.stat().st_size))
            except OSError:  # removed in the meantime
                continue
    return frozenset(there)


def writing(work: Work, out: Path) -> bool:
    """Whether a file or folder has a temporary name."""
    return any(
        name.startswith((".writing", ".replaced")) or ".partial" in name for name, _ in seen(work, out)
    )


def wait(process: BaseProcess, ready: Callable[[], bool]) -> bool:
    """Wait until `ready()`; False if the process ended before."""
    deadline = time.monotonic() + PATIENCE
    while process.is_alive():
        if ready():
            return True
        if time.monotonic() > deadline:
            kill_group(process)
            raise RuntimeError(f"an attempt wrote nothing for {PATIENCE} s")
        time.sleep(LOOK)
    return False


def survives(process: BaseProcess, seconds: float) -> bool:
    """Wait for some seconds; False if the process ended before."""
    process.join(seconds)
    return process.is_alive()


def kill_group(process: BaseProcess) -> None:
    """Kill a process and all its children."""
    try:
        os.killpg(process.pid or 0, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()  # it has not created its group yet
    process.join()


def strike(work: Work, out: Path, dice: random.Random, usual: Undisturbed) -> dict[str, Any] | None:
    """Start an attempt and kill it at a random moment; return when and how, or None if it ended before."""
    moment = dice.choices(["start-up", "work", "writing"], [2, 5, 3])[0]
    before, began = seen(work, out), time.monotonic()
    process = begin(work, out)
    try:
        if moment == "start-up":
            alive = survives(process, dice.uniform(0, usual.start_up))
        elif moment == "work":
            alive = wait(process, lambda: seen(work, out) != before)
            alive = alive and survives(process, dice.uniform(0, usual.work / 4))
        else:
            skip = time.monotonic() + dice.uniform(0, usual.start_up + usual.work / 8)
            alive = wait(process, lambda: time.monotonic() > skip and writing(work, out))
            alive = alive and survives(process, dice.uniform(0, WRITING))
    finally:
        unfinished = writing(work, out)
        kill_group(process)
    if not alive and process.exitcode != -signal.SIGKILL:
        if process.exitcode:
            tail = out.with_name(f"{out.name}.log").read_text()[-2000:]
            raise RuntimeError(f"{out}: exit code {process.exitcode} without a kill:\n{tail}")
        return None
    return {
        "moment": moment,
        "seconds": round(time.monotonic() - began, 3),
        "unfinished": unfinished,
        "damaged": damaged(out),
    }


def undisturbed(work: Work, folder: Path) -> Undisturbed:
    """Do the work once without a kill, or read the stored result."""
    known, out = folder / "found.json", folder / "out"
    if known.exists():
        return Undisturbed(**json.loads(known.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    process = begin(work, out)
    wait(process, lambda: bool(seen(work, out)))
    first = time.monotonic()
    process.join()
    if process.exitcode:
        sys.exit(f"the undisturbed {folder.name} failed:\n{(folder / 'out.log').read_text()}")
    result = Undisturbed(work.found(out), first - began, time.monotonic() - first)
    known.write_text(json.dumps(asdict(result)))
    return result


# -- all of them -------------------------------------------------------------------------------------


class Records:
    """kills.jsonl: a line for each kill and each end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.all = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def add(self, **record: Any) -> None:
        self.all.append(record)
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    def of(self, event: str, name: str | None = None) -> list[dict[str, Any]]:
        return [r for r in self.all if r["event"] == event and name in (None, r["work"])]


def kill_all(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill `kills` attempts, in as many folders as they fill, and run the last ones to completion."""
    prepare(folder / "inputs")
    kinds, began = works(folder / "inputs"), time.monotonic()
    usual = {name: undisturbed(work, folder / "undisturbed" / name) for name, work in kinds.items()}
    records = Records(folder / "kills.jsonl")
    turns = [name for name, work in kinds.items() for _ in range(work.share)]
    while len(records.of("kill")) < kills:
        name = turns[len(records.of("kill")) % len(turns)]
        number = len(records.of("kill", name))
        dice = random.Random(f"{seed} {name} {number}")
        out = current(folder, records, name)
        struck = strike(kinds[name], out, dice, usual[name])
        if struck is None:
            conclude(records, name, kinds[name], out, usual[name])
        else:
            records.add(event="kill", work=name, run=out.parent.name, **struck)
    for name, work in kinds.items():
        out = current(folder, records, name)
        process = begin(work, out)
        wait(process, lambda: False)
        conclude(records, name, work, out, usual[name], code=process.exitcode)
    return {"seconds": round(time.monotonic() - began)} | summary(records)


def current(folder: Path, records: Records, name: str) -> Path:
    """The folder that the work fills. Its name equals the undisturbed one's, since it names the set."""
    return folder / name / f"run-{len(records.of('end', name))}" / "out"


def conclude(
    records: Records, name: str, work: Work, out: Path, usual: Undisturbed, code: int | None = 0
) -> None:
    """Compare a finished folder with the undisturbed one."""
    found = work.found(out) if code == 0 else {"exit code": str(code)}
    different = sorted(k for k in found.keys() | usual.found.keys() if found.get(k) != usual.found.get(k))
    records.add(event="end", work=name, run=out.parent.name, compared=len(found), different=different[:20])


def summary(records: Records) -> dict[str, Any]:
    kills, ends = records.of("kill"), records.of("end")
    struck = [end for end in ends if any(k["run"] == end["run"] and k["work"] == end["work"] for k in kills)]
    broken = [problem for kill in kills for problem in kill["damaged"]]
    wrong = [end for end in ends if end["different"]]
    return {
        "name": "kills",
        "kills": len(kills),
        "by_work": Counter(kill["work"] for kill in kills),
        "by_moment": Counter(kill["moment"] for kill in kills),
        "with_a_temporary_file": sum(kill["unfinished"] for kill in kills),
        "ends": len(struck),
        "ends_that_differ": len(wrong),
        "damaged_checkpoints": len(broken),
        "pass": not wrong and not broken,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/kills"), help="resumes if it holds an unfinished benchmark"
    )
    parser.add_argument("--quick", action="store_true", help="nine kills")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    result = kill_all(a.out.resolve(), 9 if a.quick else a.kills, a.seed)
    print(json.dumps(result))
    return 0 if result["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
