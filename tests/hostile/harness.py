"""Runs one hostile input through the command line, in a forked child that may not do much harm.

Forking from a process that has everything imported makes a case cost a tenth of a second instead of the
seconds that an interpreter takes to import torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BESIDES = re.compile(r"\s*\d+% \d+/\d+ \[|checkpoint skipped: ")
"""Lines that may come before the error: progress, and what was passed over."""
SECONDS, BYTES = 10, 2 << 30
LARGEST = 1 << 30
"""Bytes of a file that is compared by its content; longer ones are by their length."""


@dataclass(frozen=True)
class Case:
    """One hostile input: `make` breaks something in the workspace and returns the command line."""

    name: str
    make: Callable[[Path], list[str]]
    code: int = 2
    """2: the user's mistake. 1: the machine's failure. 0: harmless, which is not counted as a kind."""
    writes: tuple[str, ...] = ()
    """What the verb may write all the same, below the workspace."""
    file_bytes: int = resource.RLIM_INFINITY
    """How long a file may become: a disk that is full."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str
    seconds: float
    changed: list[str]
    """Files that are new, gone or different."""


def run(case: Case, sound: Path, root: Path) -> Outcome:
    """Copy the sound inputs to `root`/work, break them, and run the command line there."""
    work, outside = root / "work", root / "outside"
    outside.mkdir(parents=True)
    (outside / "secret.txt").write_text("the user's own\n")
    shutil.copytree(sound, work, symlinks=True)
    arguments = case.make(work)
    before, started = snapshot(root), time.monotonic()
    code = in_child(lambda: call(case, arguments, work, root))
    seconds = time.monotonic() - started
    out, err = (Path(f"{root}.{name}").read_text(errors="replace") for name in ("out", "err"))
    changed = before.items() ^ snapshot(root).items()
    allowed = tuple(f"work/{name}" for name in case.writes)
    names = sorted({name for name, _ in changed if not name.startswith(allowed or ("\0",))})
    return Outcome(code, out, err, seconds, names)


def call(case: Case, arguments: list[str], work: Path, root: Path) -> int:
    """What happens in the child."""
    from sparface import cli

    os.chdir(work)
    os.environ |= {"HOME": str(root), "XDG_CACHE_HOME": str(root / "cache")}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{root}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (case.file_bytes, case.file_bytes))
    try:
        return cli.main(arguments)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def in_child(work: Callable[[], int]) -> int:
    """The exit code of a fork that runs `work`; it is killed, with its children, when it takes too long."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    deadline = time.monotonic() + SECONDS
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
            break
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(done[1])


def snapshot(root: Path) -> dict[str, str]:
    """What is below a folder: path → kind and content."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        kind = "link " + os.readlink(path) if stat.S_ISLNK(mode) else stat.filemode(mode)
        content = ""
        if stat.S_ISREG(mode):
            size = path.stat().st_size
            content = hashlib.sha256(path.read_bytes()).hexdigest() if size <= LARGEST else str(size)
        found[path.relative_to(root).as_posix()] = f"{kind} {content}"
    return found


def problems(case: Case, outcome: Outcome) -> list[str]:
    """What a user would complain about."""
    lines = [line for line in outcome.err.splitlines() if line.strip() and not BESIDES.match(line)]
    found = []
    if outcome.code != case.code:
        found.append(f"exit code {outcome.code} instead of {case.code}")
    if outcome.seconds >= SECONDS:
        found.append(f"took {outcome.seconds:.1f} s")
    one_error = len(lines) == 1 and lines[0].startswith("sparface: error: ")
    if not one_error if case.code else "Traceback" in outcome.err:
        found.append(f"{len(lines)} lines instead of one error: {outcome.err[-600:]!r}")
    if not all(char.isprintable() for line in lines for char in line):
        found.append("control characters")
    if outcome.changed:
        found.append(f"changed {', '.join(outcome.changed[:5])}")
    return found
