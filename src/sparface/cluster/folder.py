"""The log folder of a submission: what was submitted, and how every attempt ended.

- `job.json`: written once, after the submission;
- `attempts.jsonl`: one line when an attempt starts (from rank 0), and one when each of its processes ends
  (from that process's supervisor);
- submitit's pickle, and the processes' output in `ID_RANK_log.out` and `.err`.
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
from sparface.forms import NUMBER, fits, parsed

Record = dict[str, Any]
JOB_FILE = "job.json"
ATTEMPTS_FILE = "attempts.jsonl"
MAX_BYTES = 1 << 26
"""Maximum size of a file that is read, enough for some hundred thousand tasks or attempts."""
JOB = {
    "submitted": NUMBER,
    "name": str,
    "cluster": str,
    "tasks": [{"id": str, "command": [str], "out": str}],
}
NOTE = {"task": int, "attempt": int, "rank": int, "host": str, "pid": int}
FORMS = {"start": NOTE, "end": NOTE | {"code": int, "signal": str, "progress": int}}
"""Required structure of a line in the attempts file, by event."""


@dataclass(frozen=True)
class JobFolder:
    """The log folder of a submission, on a file system shared by all its nodes."""

    path: Path

    @classmethod
    def new(cls, logs: Path, name: str) -> JobFolder:
        """Create a new folder in `logs`, named after `name` and the time."""
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
        """Return the submissions in `logs`, oldest first. Raises `UserError` naming a damaged one."""
        found = [cls(file.parent) for file in logs.glob(f"*/{JOB_FILE}")]
        return sorted(found, key=lambda folder: float(folder.job["submitted"]))

    @property
    def job(self) -> Record:
        """What was submitted. Raises `UserError` if the record is damaged."""
        file = self.path / JOB_FILE
        try:
            job: Record = parsed(read_bounded(inside(self.path, JOB_FILE), MAX_BYTES))
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        if not fits(job, JOB) or not all(t["command"] and "\0" not in t["out"] for t in job["tasks"]):
            raise UserError(f"{file}: damaged; move {self.path} away to list the other jobs")
        return job

    def describe(self, **facts: Any) -> None:
        write_whole(self.path / JOB_FILE, json.dumps({"submitted": time.time(), **facts}, indent=1).encode())

    def note(self, **facts: Any) -> None:
        """Append a line to the attempts in a single write, so that lines of several ranks do not mix."""
        append_line(self.path / ATTEMPTS_FILE, json.dumps({"time": time.time(), **facts}))

    def attempts(self, task: int) -> list[Record]:
        """Return the records of one task of the array, skipping damaged and unknown lines."""
        try:
            lines = read_bounded(inside(self.path, ATTEMPTS_FILE), MAX_BYTES).splitlines()
        except (OSError, UserError):
            return []
        return [record for record in sound(lines) if is_note(record) and record["task"] == task]


def is_note(record: Record) -> bool:
    """Whether a record has the structure that its event requires."""
    form = FORMS.get(str(record.get("event")))
    return form is not None and fits(record, form)


def sound(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield the JSON objects among the lines, skipping incomplete ones."""
    for line in lines:
        record = parsed(line)
        if isinstance(record, dict):
            yield record
