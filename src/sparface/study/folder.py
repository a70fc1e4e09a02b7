"""The folder of a study: what it was started with, and a record of every part.

- `study.yaml`: the study file; `settings.json`: its size and the paths of the data
- `parts/NAME.json`: the attempts of a part; `logs/NAME.log`: what it printed
- `prepared/`, `runs/`, `figures/`: the results of the parts
- `report.html`, `runs.html`, `evidence.md`, `evidence.json`: the outcome
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.files import inside, open_lock, read_bounded, try_lock, write_whole
from sparface.forms import COUNT, NUMBER, fits, read_json
from sparface.shards.manifest import MANIFEST
from sparface.study import file as study_file
from sparface.study.file import Study
from sparface.study.plan import Part, Plan
from sparface.text import printable

STUDY_FILE, SETTINGS_FILE = "study.yaml", "settings.json"
FOLDERS = ("parts", "logs", "runs", "figures", "prepared", "jobs")
MAX_BYTES, MAX_RECORD = 1 << 24, 1 << 20
PATH = re.compile(r"(?s).{1,4096}")
SETTINGS = {"file": str, "size": str, "images": range(10**12), "data": {str: PATH}}
ATTEMPT = {"started": NUMBER, "seconds": NUMBER, "cpu_seconds": NUMBER, "code": int, "processes": COUNT}
RECORD = {"words": [str], "attempts": [ATTEMPT]}
"""Required structure of the files of a study's folder."""
LATEST = 1e11
"""The latest time that a record may have, in seconds since 1970."""
Check = Callable[[Sequence[str]], Any]
"""Parses a command and returns its options; raises `UserError` if its verb would reject it."""


@dataclass(frozen=True)
class Record:
    """How the attempts of a part have ended."""

    words: tuple[str, ...]
    attempts: tuple[Mapping[str, Any], ...]

    @property
    def finished(self) -> float | None:
        """When the part was finished, in seconds since 1970; None if it is not."""
        last = self.attempts[-1]
        return float(last["started"] + last["seconds"]) if last["code"] == 0 else None

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all attempts that ended by themselves, over all processes."""
        return float(sum(attempt["cpu_seconds"] * attempt["processes"] for attempt in self.attempts))


@dataclass(frozen=True)
class Done:
    """A finished part."""

    at: float
    """When it was finished, in seconds since 1970."""
    cpu_seconds: float


class StudyFolder:
    """A study and its folder."""

    def __init__(self, path: Path, study: Study, settings: Mapping[str, Any]) -> None:
        self.path, self.study, self.settings = path, study, settings

    @classmethod
    def open(cls, path: Path) -> StudyFolder:
        """Open the folder of a study that was started. Raises `UserError` if it is none."""
        settings = _settings(path)
        if settings is None or not (path / STUDY_FILE).is_file():
            raise UserError(
                f"{path}: is no study; give a study file, or the --out folder of `sparface study`"
            )
        study = study_file.read(inside(path, STUDY_FILE), settings["size"], settings["images"])
        return cls(path, study, settings)

    @classmethod
    def start(
        cls, file: Path, path: Path, data: Sequence[str] = (), *, size: str = "", images: int = 0
    ) -> StudyFolder:
        """A study that starts in a folder, or continues there, with the study file as it is now.

        Nothing is written before `held`. `data` are texts like `celeba=PATH`; they may be left out when the
        study continues, like `size` and `images` (see `study.file.read`). Raises `UserError` if data are
        missing or unknown, if the study was started with another size, or if the folder holds something else.
        """
        known = _settings(path)
        if known is None:
            if path.exists() and any(path.iterdir()):
                raise UserError(f"{path}: not empty and no study; choose another --out")
            known = {"size": size, "images": images, "data": {}}
        for name, given in (("size", size), ("images", images)):
            if given and given != known[name]:
                raise UserError(f"--{name}: {path} was started with {known[name]!r}; choose another --out")
        study = study_file.read(file, known["size"], known["images"])
        given_data = [_given(text, study.data) for text in data]
        if len(dict(given_data)) < len(data):
            raise UserError("--data: a name is given twice; give each one once")
        paths = known["data"] | dict(given_data)
        if missing := [name for name in study.data if name not in paths]:
            text = printable(study.data[missing[0]])
            raise UserError(f"--data: {missing[0]} is missing; give --data {missing[0]}=PATH ({text})")
        paths = {name: paths[name] for name in study.data}
        settings = {"file": file.name, "size": study.size, "images": known["images"], "data": paths}
        return cls(path, study, settings)

    @contextmanager
    def held(self, file: Path) -> Iterator[None]:
        """Context manager: write down what is run, a copy of the study file, and keep other processes from
        running the study here. Raises `UserError` if one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open_lock(self.path / ".lock") as lock:
            if not try_lock(lock):
                raise UserError(f"{self.path}: another process runs this study; wait for it")
            write_whole(self.path / STUDY_FILE, read_bounded(file, MAX_BYTES))
            write_whole(self.path / SETTINGS_FILE, json.dumps(self.settings, indent=1).encode())
            yield

    @cached_property
    def plan(self) -> Plan:
        return Plan(self.study, self.resolved, self.settings["data"])

    @cached_property
    def resolved(self) -> Path:
        return self.path.resolve()

    def own(self, path: Path) -> Path:
        """Return a path below the folder, with links followed. Raises `UserError` if it leads out of it."""
        return inside(self.resolved, path.relative_to(self.resolved))

    def record(self, part: Part) -> Record | None:
        """Return the record of a part; None if it has none, or a damaged one."""
        found = read_json(self.resolved, f"parts/{part.name}.json", MAX_RECORD)
        if not fits(found, RECORD) or not found["attempts"] or not all(map(_is_possible, found["attempts"])):
            return None
        return Record(tuple(found["words"]), tuple(found["attempts"]))

    def portable(self, part: Part) -> tuple[str, ...]:
        """Return the words of a part without the study's own path, so that the folder can be moved."""
        return tuple(word.replace(str(self.resolved), "STUDY") for word in part.words)

    def ended(self, part: Part) -> Done | None:
        """Return how a part has ended if it succeeded, with its present command, and its result exists."""
        record = self.record(part)
        if record is None or record.finished is None or record.words != self.portable(part):
            return None
        try:
            exists = self.own(part.out).exists()
        except UserError:
            return None
        return Done(record.finished, record.cpu_seconds) if exists else None

    def done(self) -> dict[str, Done]:
        """Return the finished parts; the others are to run, as they or what they need have changed since."""
        found: dict[str, Done] = {}
        for name, part in self.plan.parts.items():  # each comes after those that it needs
            own = self.ended(part)
            if own and all(need in found and found[need].at <= own.at for need in part.needs):
                found[name] = own
        return found

    def require_sound(self, check: Check) -> None:
        """Check the commands of missing parts, one of each kind.

        Raises `UserError` if one would be rejected, or if a part was run with another command than the study
        has now.
        """
        for name in FOLDERS:
            self.own(self.resolved / name)
        done = self.done()
        checked: set[tuple[str, ...]] = set()
        for part in self.plan.parts.values():
            record = self.record(part)
            words = self.portable(part)
            if record and record.words != words and part.out.exists():
                old, new = set(record.words) - set(words), set(words) - set(record.words)
                was = f"was {' '.join(sorted(old))[:200]}, is {' '.join(sorted(new))[:200]}"
                raise UserError(f"{part.out}: settings changed ({was}); delete it, or choose another --out")
            if part.name not in done and part.like not in checked:
                checked.add(part.like)
                self.require_own(part, check)

    def require_own(self, part: Part, check: Check) -> None:
        """Raise `UserError` unless a part has a sound command that writes the part's own result."""
        for path in (part.out, self._record(part)):
            self.own(path)
        try:
            options = check(part.words)
        except UserError as error:
            raise UserError(f"{part.name}: {error}") from None
        except SystemExit:  # the parser has printed a help
            raise UserError(f"{part.name}: asks for help; name what to run") from None
        out = options.get("out") or options.get("json")
        if out is None or Path(out) != part.out:
            raise UserError(f"{part.name}: writes {out}; it must write {{out}} and nothing else")

    def run(self, name: str, run: Callable[[Sequence[str]], int], check: Check) -> int:
        """Run a part in this process, record how it ended, and return its exit code.

        Raises `UserError` for an unknown part, or one that writes elsewhere.
        """
        if name not in self.plan.parts:
            raise UserError(f"{self.path}: has no part {printable(name)!r}")
        part = self.plan.parts[name]
        self.require_own(part, check)
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
        write_whole(self.own(self._record(part)), json.dumps(content, indent=1).encode())

    def _record(self, part: Part) -> Path:
        return self.resolved / "parts" / f"{part.name}.json"

    def log(self, part: Part) -> Path:
        """Return the file of what a part has printed. Raises `UserError` if it is not in the folder."""
        return self.own(self.resolved / "logs" / f"{part.name}.log")


def _settings(path: Path) -> dict[str, Any] | None:
    """Read what a study was started with; None if the folder is no study."""
    found = read_json(path, SETTINGS_FILE, MAX_BYTES)
    return dict(found) if fits(found, SETTINGS) else None


def _is_possible(attempt: Mapping[str, Any]) -> bool:
    """Whether the numbers of an attempt can be true; not if one is NaN."""
    return all(0 <= attempt[name] <= LATEST for name in ("started", "seconds", "cpu_seconds"))


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
