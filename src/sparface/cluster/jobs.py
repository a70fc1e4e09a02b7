"""What `sparface jobs` shows: one line per job, from the log folders, the run folders and SLURM."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from sparface import config_file
from sparface.cluster import slurm
from sparface.cluster.folder import JobFolder, Record, sound
from sparface.cluster.job import checkpoints, worst
from sparface.errors import UserError
from sparface.files import open_regular
from sparface.forms import NUMBER, fits
from sparface.text import printable

HEADER: tuple[str, ...] = (
    *("JOB", "NAME", "STATE", "VERB", "RUN", "STARTS"),
    *("CHECKPOINT", "IMAGES/S", "IMAGES", "LOGS"),
)
LOGGED = {"images": int, "images_per_second": NUMBER}
TAIL = 16384
"""Bytes at the end of a run's metrics that are sure to hold a whole line."""


@dataclass(frozen=True)
class Progress:
    """How far a run is; None where there is nothing to tell."""

    checkpoint: int | None = None
    """Images seen in the newest checkpoint."""
    checkpoint_age: float | None = None
    """Seconds."""
    images_per_second: float | None = None
    images: int | None = None
    """Images seen at the newest log line."""
    total: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row(Progress):
    """One job, or one task of an array."""

    job: str
    name: str
    state: str
    verb: str
    run: str
    starts: int
    logs: str


def list_jobs(logs: Path, *, as_json: bool = False) -> str:
    """The jobs whose log folders are below `logs`, oldest first, as a table or as JSON.

    Raises `UserError` when there is no such folder.
    """
    if not logs.is_dir():
        raise UserError(f"{logs}: no such folder; `sparface submit` makes it, --logs names another")
    rows = [Row(**{name: shown(value) for name, value in vars(row).items()}) for row in read(logs)]
    return json.dumps([asdict(row) for row in rows], indent=1) if as_json else table(rows)


def shown(value: Any) -> Any:
    """Texts come from folders that others may have written, and must not drive a terminal."""
    return printable(value) if isinstance(value, str) else value


def read(logs: Path) -> Iterator[Row]:
    """A row per job; SLURM is asked once for all."""
    folders = [(folder, folder.job) for folder in JobFolder.all(logs)]
    states = slurm.states(
        task["id"] for _, job in folders if job["cluster"] == "slurm" for task in job["tasks"]
    )
    for folder, job in folders:
        for number, task in enumerate(job["tasks"]):
            attempts = folder.attempts(number)
            state = states.get(task["id"], "") if job["cluster"] == "slurm" else local_state(attempts)
            run = Path(task["out"]) if task["out"] else None
            yield Row(
                job=task["id"],
                name=job["name"],
                state=state or "unknown",
                verb=task["command"][0],
                run=task["out"],
                starts=len({record["attempt"] for record in attempts}),
                logs=os.path.relpath(folder.path),
                **asdict(progress_of(run)),
            )


def local_state(attempts: list[Record]) -> str:
    """The state of a job without a scheduler: whether its supervisor lives, else how it ended."""
    if not attempts or attempts[0]["host"] != socket.gethostname():
        return ""
    last = max(record["attempt"] for record in attempts)
    records = [record for record in attempts if record["attempt"] == last]
    if any(supervises(record["pid"]) for record in records):
        return "RUNNING"
    codes = [record["code"] for record in records if record["event"] == "end"]
    names = {"done": "COMPLETED", "stopped": "STOPPED", "refused": "FAILED", "failed": "FAILED"}
    return names[worst(codes)] if codes else "FAILED"


def supervises(pid: int) -> bool:
    """Whether a process is there and is a job's (numbers of ended processes are used again)."""
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
    return "submitit" in command or "sparface" in command


def progress_of(run: Path | None) -> Progress:
    """How far a run is, from its folder."""
    if run is None:
        return Progress()
    newest, saved = newest_checkpoint(run)
    logged = last_line(run / "metrics.jsonl")
    return Progress(
        checkpoint=newest,
        checkpoint_age=None if saved is None else time.time() - saved,
        images_per_second=logged.get("images_per_second"),
        images=logged.get("images"),
        total=total_of(run / "config.yaml"),
    )


def newest_checkpoint(run: Path) -> tuple[int | None, float | None]:
    """Images seen in the newest checkpoint and when it was written; None where there is none to be read."""
    try:
        steps = checkpoints(run)
        newest = max(steps, default=None)
        return newest, None if newest is None else steps[newest].stat().st_mtime
    except OSError:  # no right to look, or deleted meanwhile
        return None, None


def last_line(file: Path) -> Record:
    """The newest record with a rate in a metrics file that is being written; {} if there is none."""
    try:
        with open_regular(file) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL))
            lines = stream.read(TAIL).splitlines()
    except (OSError, UserError):
        return {}
    return next((r for r in sound(reversed(lines)) if fits(r, LOGGED)), {})


def total_of(file: Path) -> int | None:
    """Images that a run is to see, as its config says; None when that can't be read."""
    try:
        schedule = config_file.read(file).get("schedule")
    except UserError:
        return None
    return schedule["images"] or None if schedule and fits(schedule, {"images": int}) else None


def table(rows: list[Row]) -> str:
    """Aligned columns; "-" where there is nothing to tell."""
    lines = [HEADER, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def cells(row: Row) -> tuple[str, ...]:
    checkpoint = "-" if row.checkpoint is None else f"{row.checkpoint:,}"
    if row.checkpoint_age is not None:
        checkpoint += f" ({age(row.checkpoint_age)} ago)"
    rate = "-" if row.images_per_second is None else f"{row.images_per_second:.1f}"
    images = "-" if row.images is None else f"{row.images:,}"
    if row.total:
        images += f"/{row.total:,}"
    return (
        *(row.job, row.name, row.state, row.verb, row.run or "-", str(row.starts)),
        *(checkpoint, rate, images, row.logs),
    )


def age(seconds: float) -> str:
    """Seconds in the unit that fits."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
