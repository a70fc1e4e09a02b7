"""The folder of a study: what it was started with, and a record of every part.

- `study.yaml`: the study file; `settings.json`: its size and the paths of the data
- `parts/NAME.json`: the attempts of a part; `logs/NAME.log`: what it printed
- `prepared/`, `runs/`, `figures/`: the results of the parts
- `report.html`, `runs.html`, `evidence.md`, `evidence.json`: the outcome
"""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.files import inside, open_lock, read_bounded, try_lock, write_whole
from sparface.forms import COUNT, NUMBER, fits, read_json
from sparface.shards.manifest import MANIFEST
from sparface.study import file as study_file
from sparface.study.plan import Part, Plan
from sparface.text import printable

STUDY_FILE, SETTINGS_FILE = "study.yaml", "settings.json"
MAX_BYTES = 1 << 24
SETTINGS = {"file": str, "size": str, "images": COUNT, "data": {str: str}}
ATTEMPT = {"started": NUMBER, "seconds": NUMBER, "cpu_seconds": NUMBER, "code": int, "processes": COUNT}
RECORD = {"words": [str], "attempts": [ATTEMPT]}
"""Required structure of the files of a study's folder."""


@dataclass(frozen=True)
class Record:
    """How the attempts of a part have ended."""

    words: tuple[str, ...]
    attempts: tuple[Mapping[str, Any], ...]

    @property
    def finished(self) -> float | None:
        """When the part was finished, in seconds since 1970; None if it is not."""
        last = self.attempts[-1]
        return last["started"] + last["seconds"] if last["code"] == 0 else None

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all attempts that ended by themselves, over all processes."""
        return float(sum(attempt["cpu_seconds"] * attempt["processes"] for attempt in self.attempts))

    @property
    def seconds(self) -> float:
        return float(sum(attempt["seconds"] for attempt in self.attempts))


class StudyFolder:
    """A study in its folder."""

    def __init__(self, path: Path) -> None:
        """Open the folder of a study that was started. Raises `UserError` if it is none."""
        self.path = path
        settings = read_json(path, SETTINGS_FILE, MAX_BYTES)
        if not fits(settings, SETTINGS) or not (path / STUDY_FILE).is_file():
            raise UserError(
                f"{path}: is no study; give a study file, or the --out folder of `sparface study`"
            )
        self.settings = dict(settings)
        size, images = self.settings["size"], self.settings["images"]
        self.study = study_file.read(inside(path, STUDY_FILE), size, images)

    @classmethod
    def start(
        cls, file: Path, path: Path, data: Sequence[str] = (), *, size: str = "", images: int = 0
    ) -> StudyFolder:
        """Start a study in a folder, or continue it there, with the study file as it is now.

        `data` are texts like `celeba=PATH`; they may be left out when the study continues, like `size` and
        `images` (see `study.file.read`). Raises `UserError` if data are missing or unknown, if the study was
        started with another size, or if the folder holds something else.
        """
        known = read_json(path, SETTINGS_FILE, MAX_BYTES)
        if known is None or not fits(known, SETTINGS):
            if path.exists() and any(path.iterdir()):
                raise UserError(f"{path}: not empty and no study; choose another --out")
            known = {"size": size, "images": images, "data": {}}
        for name, given in (("size", size), ("images", images)):
            if given and given != known[name]:
                raise UserError(f"--{name}: {path} was started with {known[name]!r}; choose another --out")
        study = study_file.read(file, known["size"], known["images"])
        paths = known["data"] | dict(_given(text, study.data) for text in data)
        if missing := [name for name in study.data if name not in paths]:
            text = printable(study.data[missing[0]])
            raise UserError(f"--data: {missing[0]} is missing; give --data {missing[0]}=PATH ({text})")
        write_whole(path / STUDY_FILE, read_bounded(file, MAX_BYTES))
        paths = {name: paths[name] for name in study.data}
        settings = {"file": file.name, "size": study.size, "images": known["images"], "data": paths}
        write_whole(path / SETTINGS_FILE, json.dumps(settings, indent=1).encode())
        return cls(path)

    @cached_property
    def plan(self) -> Plan:
        return Plan(self.study, self.resolved, self.settings["data"])

    @cached_property
    def resolved(self) -> Path:
        return self.path.resolve()

    def record(self, part: Part) -> Record | None:
        """Return the record of a part; None if it has none, or a damaged one."""
        found = read_json(self.path, f"parts/{part.name}.json", MAX_BYTES)
        if not fits(found, RECORD) or not found["attempts"]:
            return None
        return Record(tuple(found["words"]), tuple(found["attempts"]))

    def portable(self, part: Part) -> tuple[str, ...]:
        """Return the words of a part without the study's own path, so that the folder can be moved."""
        return tuple(word.replace(str(self.resolved), "STUDY") for word in part.words)

    def finished(self, part: Part) -> float | None:
        """Return when a part was finished; None if it, or one that it needs, is to run (again)."""
        record = self.record(part)
        if record is None or record.words != self.portable(part) or not part.out.exists():
            return None
        end = record.finished
        if end is None:
            return None
        before = [self.finished(self.plan.parts[name]) for name in part.needs]
        return end if all(time is not None and time <= end for time in before) else None

    def require_sound(self, check: Callable[[Sequence[str]], object]) -> None:
        """Check the commands of missing parts, one of each kind, with `check`, which raises `UserError`.

        Also raises `UserError` if a part was run with another command than the study has now.
        """
        checked: set[tuple[str, ...]] = set()
        for part in self.plan.parts.values():
            record = self.record(part)
            words = self.portable(part)
            if record and record.words != words and part.out.exists():
                old, new = set(record.words) - set(words), set(words) - set(record.words)
                was = f"was {' '.join(sorted(old))}, is {' '.join(sorted(new))}"
                raise UserError(f"{part.out}: settings changed ({was}); delete it, or choose another --out")
            if self.finished(part) is None and part.like not in checked:
                checked.add(part.like)
                try:
                    check(part.words)
                except UserError as error:
                    raise UserError(f"{part.name}: {error}") from None

    def run(self, name: str, run: Callable[[Sequence[str]], int]) -> int:
        """Run a part in this process, record how it ended, and return its exit code.

        Raises `UserError` for an unknown part. A part that another process runs already is left to it.
        """
        if name not in self.plan.parts:
            raise UserError(f"{self.path}: has no part {printable(name)!r}")
        part = self.plan.parts[name]
        started, clock, code = time.time(), time.monotonic(), 1
        part.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            code = 0 if self._is_written(part) else run([*part.words, *_threads(part)])
        finally:
            if os.environ.get("RANK", "0") == "0":
                self._note(part, {
                    "started": started,
                    "seconds": round(time.monotonic() - clock, 2),
                    "cpu_seconds": round(_cpu_seconds(), 2),
                    "code": code,
                    "processes": int(os.environ.get("WORLD_SIZE", "1")),
                    "host": socket.gethostname(),
                })  # fmt: skip
        return code

    def _is_written(self, part: Part) -> bool:
        """Whether a set was finished by an attempt that was killed before it was recorded: the verbs that
        write sets refuse to write a finished one again."""
        record = self.record(part)
        return (part.out / MANIFEST).is_file() and not (record and record.finished)

    def _note(self, part: Part, attempt: dict[str, Any]) -> None:
        record = self.record(part)
        attempts = record.attempts if record and record.words == self.portable(part) else ()
        content = {"words": self.portable(part), "attempts": [*attempts, attempt]}
        write_whole(self.path / "parts" / f"{part.name}.json", json.dumps(content, indent=1).encode())

    def log(self, part: Part) -> Path:
        return self.path / "logs" / f"{part.name}.log"

    def lock(self) -> Any:
        """Open the lock of the study. Raises `UserError` if another process runs it here."""
        lock = open_lock(self.path / ".lock")
        if not try_lock(lock):
            raise UserError(f"{self.path}: another process runs this study; wait for it")
        return lock


def _given(text: str, known: Collection[str]) -> tuple[str, str]:
    """Split NAME=PATH and make the path absolute."""
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise UserError(f"--data: {printable(text)} is not allowed; give NAME=PATH")
    if name not in known:
        listed = ", ".join(known) or "none"
        raise UserError(f"--data: {printable(name)} is not used by the study; known: {listed}")
    if "pipe:" in value:
        raise UserError(f"--data: {name}: a command (pipe:) is not allowed; give a path or a URL")
    return name, value if "://" in value else str(Path(value).expanduser().absolute())


def _threads(part: Part) -> list[str]:
    """Let a training use as many threads as the process was given."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    own = any(word.startswith("--training.threads") for word in part.words)
    return [f"--training.threads={given}"] if part.words[0] == "train" and given.isdigit() and not own else []


def _cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
