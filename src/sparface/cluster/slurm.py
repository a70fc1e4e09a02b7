"""What is asked of SLURM, by its own commands, each bounded in time.

A controller that can't be reached (a node cut off, a laptop without SLURM) is an answer here, not
an error: `None` or nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

PATIENCE = 20.0
"""Seconds that one command may take; SLURM's own patience is several minutes."""


class Life(NamedTuple):
    """Whether SLURM runs a job, and how often it has started it again."""

    state: str
    restarts: int


def life(job: str) -> Life | None:
    """The state of one job (`123` or `123_4`) as the controller has it; None when it can't be asked."""
    text = _ask("scontrol", "show", "job", "--oneliner", job)
    found = re.search(r"\bJobState=(\w+).*\bRestarts=(\d+)", text)
    return Life(found[1], int(found[2])) if found else None


def requeue(job: str) -> str:
    """Ask SLURM to put a running job back into the queue; its words when it refuses, else "".

    Look at `life` for whether it did.
    """
    return _run("scontrol", "requeue", job)[1]


def reason(job: str) -> str:
    """Why a job waits, in SLURM's word; "" if it can't be asked."""
    found = re.search(r"\bReason=(\S+)", _ask("scontrol", "show", "job", "--oneliner", job))
    return found[1] if found else ""


def cancel(job: str) -> None:
    """Cancel a job, or all tasks of an array."""
    _ask("scancel", job)


def states(jobs: Iterable[str]) -> dict[str, str]:
    """States by job id, with the reason of one that waits: `PENDING (Priority)`.

    Two calls for all jobs: the accounting is seconds behind the controller, which soon forgets what
    has ended. What neither knows is left out.
    """
    wanted = ",".join(jobs)
    if not wanted:
        return {}
    ended = _rows(_ask("sacct", "-X", "-n", "-P", "-j", wanted, "-o", "JobID,State"))
    found = {job: state.split()[0] for job, state in ended}  # "CANCELLED by 1000"
    for job, state, reason in _rows(_ask("squeue", "-h", "-r", "-t", "all", "-j", wanted, "-o", "%i|%T|%r")):
        found[job] = f"{state} ({reason})" if state == "PENDING" else state
    return found


def partitions() -> str:
    """What may be asked for, in one line: each partition's time limit, nodes and devices; "" if unknown."""
    rows = _rows(_ask("sinfo", "-h", "-o", "%R|%l|%D|%c|%G"))
    return "; ".join(
        f"{name}: time up to {limit}, {nodes} nodes of {cpus} CPUs"
        + ("" if devices == "(null)" else f" and {devices}")
        for name, limit, nodes, cpus, devices in rows
    )


def _ask(*command: str) -> str:
    return _run(*command)[0]


def _run(*command: str) -> tuple[str, str]:
    """What a command prints, and the last line of its complaint if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    complaint = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return done.stdout, complaint[0] if done.returncode else ""


def _rows(text: str) -> list[list[str]]:
    return [line.split("|") for line in text.splitlines()]
