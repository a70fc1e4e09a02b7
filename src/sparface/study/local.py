"""Run the parts of a study on this machine, several at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sparface.cluster.job import die_with_parent
from sparface.files import open_appending, open_regular
from sparface.machine import handling_stop_signals, usable_cores
from sparface.study.folder import StudyFolder
from sparface.study.plan import Part
from sparface.text import printable

LOOK = 0.1
"""Seconds between checks of the running parts."""
TAIL = 8192
GRACE = 60.0
"""Seconds that parts get to save and end when the study is interrupted."""


def run_here(folder: StudyFolder, processes: int) -> bool:
    """Run all parts that are not finished, `processes` at once; returns whether all are finished now.

    A failed part is reported with the last line of its log; parts that need it are left out, the others run.
    """
    runner = Runner(folder, processes)
    with runner.ended():
        while runner.waiting or runner.running:
            runner.start()
            runner.collect()
    return not runner.failed


class Runner:
    """The state of a study that runs here."""

    def __init__(self, folder: StudyFolder, processes: int) -> None:
        self.folder, self.processes = folder, processes
        parts = folder.plan.parts
        self.finished = set(folder.done())
        self.waiting = {name: part for name, part in parts.items() if name not in self.finished}
        self.running: dict[subprocess.Popen[bytes], tuple[Part, float]] = {}
        self.failed: set[str] = set()
        self.total = len(parts)
        if self.finished:
            print(f"{len(self.finished)} of {self.total} parts are finished already", flush=True)
        if self.waiting:
            logs = f"their output is in {folder.path / 'logs'}"
            print(f"{len(self.waiting)} parts to run, {processes} at once; {logs}", flush=True)

    def start(self) -> None:
        """Start parts whose needs are finished, and give up those that need a failed one."""
        for name, part in list(self.waiting.items()):
            if lost := self.failed.intersection(part.needs):
                del self.waiting[name]
                self.failed.add(name)
                self.say("left out", name, f"needs {min(lost)}")
            elif len(self.running) < self.processes and self.finished.issuperset(part.needs):
                del self.waiting[name]
                self.running[self._process(part)] = part, time.monotonic()

    def collect(self) -> None:
        """Report the parts that have ended."""
        time.sleep(LOOK if self.running else 0)
        for process, (part, started) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[process]
            if process.returncode == 0 and self.folder.ended(part):
                self.finished.add(part.name)
                self.say("finished", part.name, f"{time.monotonic() - started:.0f} s")
            else:
                self.failed.add(part.name)
                log = self.folder.log(part)
                self.say(
                    "failed", part.name, f"{last_line(log) or f'exit code {process.returncode}'} ({log})"
                )

    def say(self, what: str, name: str, more: str) -> None:
        done = len(self.finished)
        print(f"{done:>5}/{self.total}  {what:<9} {name}: {printable(more)}", flush=True)

    def _process(self, part: Part) -> subprocess.Popen[bytes]:
        """Start a part as a process of its own, with its share of the cores."""
        threads = max(1, usable_cores() // self.processes)
        # a part of an interrupted study may be ending still: the training waits for it
        own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), "SPARFACE_RESTARTS": "1"}
        log = self.folder.log(part)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open_appending(log) as output:
            return subprocess.Popen(
                [sys.executable, "-m", "sparface", "study", str(self.folder.path), "--part", part.name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | own,
                preexec_fn=die_with_parent,
            )

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Context manager: on an interruption, ask the running parts to save and end."""
        try:
            with handling_stop_signals(interrupt):
                yield
        finally:
            for process in self.running:
                process.terminate()
            deadline = time.monotonic() + GRACE
            for process in self.running:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    with open_regular(log) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = file.read(TAIL).decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
