"""The log folder of a submission: what was submitted, and what became of every attempt.

- `job.json`: written once, after the submission;
- `attempts.jsonl`: one line when an attempt starts (by rank 0) and one for each of its processes
  that ended, appended by whoever is there to tell;
- submitit's pickle, and `ID_RANK_log.out` and `.err` with what the processes print.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.files import append_line, inside, read_bounded, write_whole
from sparface.forms import NUMBER, fits

Record = dict[str, Any]
JOB_FILE = "job.json"
ATTEMPTS_FILE = "attempts.jsonl"
MAX_BYTES = 1 << 26
"""Bytes of the largest record that is read: some hundred thousand tasks or attempts."""
JOB = {
    "submitted": NUMBER,
    "name": str,
    "cluster": str,
    "tasks": [{"id": str, "command": [str], "out": str}],
}
NOTE = {"task": int, "attempt": int, "rank": int, "host": str, "pid": int}
FORMS = {"start": NOTE, "end": NOTE | {"code": int, "signal": str, "progress": int}}
"""What those who read the attempts ask of each line, by its event."""


@dataclass(frozen=True)
class JobFolder:
    """A submission's folder, on a file system that all its nodes share."""

    path: Path

    @classmethod
    def new(cls, logs: Path, name: str) -> JobFolder:
        """A folder of its own below `logs`, named by `name` and the time."""
        stamp, number = time.strftime("%Y%m%d-%H%M%S"), 0
        while True:
            path = logs / (f"{name}-{stamp}" + (f"-{number}" if number else ""))
            try:
                path.mkdir(parents=True)
                return cls(path.resolve())
            except FileExistsError:
                number += 1

    @classmethod
    def all(cls, logs: Path) -> list[JobFolder]:
        """The submissions below `logs`, oldest first. Raises `UserError` naming a damaged one."""
        found = [cls(file.parent) for file in logs.glob(f"*/{JOB_FILE}")]
        return sorted(found, key=lambda folder: float(folder.job["submitted"]))

    @property
    def job(self) -> Record:
        """What was submitted. Raises `UserError` for a record that is damaged."""
        file = self.path / JOB_FILE
        try:
            job: Record = json.loads(read_bounded(inside(self.path, JOB_FILE), MAX_BYTES))
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError):
            job = {}
        if not fits(job, JOB) or not all(t["command"] and "\0" not in t["out"] for t in job["tasks"]):
            raise UserError(f"{file}: is damaged; move {self.path} away to list the other jobs")
        return job

    def describe(self, **facts: Any) -> None:
        write_whole(self.path / JOB_FILE, json.dumps({"submitted": time.time(), **facts}, indent=1).encode())

    def note(self, **facts: Any) -> None:
        """Append one line to the attempts, in one write, so that lines of several ranks stay whole."""
        append_line(self.path / ATTEMPTS_FILE, json.dumps({"time": time.time(), **facts}))

    def attempts(self, task: int) -> list[Record]:
        """The lines about one task of the array; damaged and foreign ones are left out."""
        try:
            lines = read_bounded(inside(self.path, ATTEMPTS_FILE), MAX_BYTES).splitlines()
        except (OSError, UserError):
            return []
        return [record for record in sound(lines) if is_note(record) and record["task"] == task]


def is_note(record: Record) -> bool:
    """Whether a line has all that its readers ask of it."""
    form = FORMS.get(str(record.get("event")))
    return form is not None and fits(record, form)


def sound(lines: Iterable[bytes]) -> Iterator[Record]:
    """The JSON objects among some lines; torn lines are left out."""
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record
