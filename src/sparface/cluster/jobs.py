"""List jobs for `sparface jobs`: one line per job, from log folders, run folders and SLURM."""

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
"""Bytes to read from the end of a run's metrics, enough for a whole line."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run; None for unknown values."""

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
    """A job, or a task of an array."""

    job: str
    name: str
    state: str
    verb: str
    run: str
    starts: int
    logs: str


def list_jobs(logs: Path, *, as_json: bool = False) -> str:
    """List the jobs whose log folders are in `logs`, oldest first, as a table or as JSON.

    Raises `UserError` if the folder does not exist.
    """
    if not logs.is_dir():
        raise UserError(f"{logs}: no such folder; give the --logs folder of `sparface submit`")
    rows = [Row(**{name: shown(value) for name, value in vars(row).items()}) for row in read(logs)]
    return json.dumps([asdict(row) for row in rows], indent=1) if as_json else table(rows)


def shown(value: Any) -> Any:
    """Escape text, as folders written by others must not send control codes to the terminal."""
    return printable(value) if isinstance(value, str) else value


def read(logs: Path) -> Iterator[Row]:
    """Yield a row per job; SLURM is queried once for all."""
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
    """Return the state of a job without a scheduler: running if its supervisor lives, else how it ended."""
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
    """Whether a process exists and belongs to a job, as the system reuses process ids."""
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
    return "submitit" in command or "sparface" in command


def progress_of(run: Path | None) -> Progress:
    """Read the progress of a run from its folder."""
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
    """Return images seen in the newest checkpoint and its modification time, or (None, None) without one."""
    try:
        steps = checkpoints(run)
        newest = max(steps, default=None)
        return newest, None if newest is None else steps[newest].stat().st_mtime
    except OSError:  # no permission, or deleted meanwhile
        return None, None


def last_line(file: Path) -> Record:
    """Return the newest record with throughput in a metrics file that may be being written; {} if none."""
    try:
        with open_regular(file) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL))
            lines = stream.read(TAIL).splitlines()
    except (OSError, UserError):
        return {}
    return next((r for r in sound(reversed(lines)) if fits(r, LOGGED)), {})


def total_of(file: Path) -> int | None:
    """Return the number of images that a run will train on, from its config; None if unknown."""
    try:
        schedule = config_file.read(file).get("schedule")
    except UserError:
        return None
    return schedule["images"] or None if schedule and fits(schedule, {"images": int}) else None


def table(rows: list[Row]) -> str:
    """Format rows as aligned columns; "-" marks unknown values."""
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
    """Format seconds in the most suitable unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
