"""Queries and requests to SLURM through its command-line tools, each with a timeout.

If SLURM cannot be reached (a disconnected node, a laptop without SLURM), functions return `None` or an empty
result instead of raising.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

PATIENCE = 20.0
"""Timeout of a command, in seconds; SLURM's own timeout is several minutes."""


class Life(NamedTuple):
    """State of a job in SLURM, and how often SLURM has restarted it."""

    state: str
    restarts: int


def life(job: str) -> Life | None:
    """Return the controller's state of one job (`123` or `123_4`); None if it cannot be reached."""
    text = _ask("scontrol", "show", "job", "--oneliner", job)
    found = re.search(r"\bJobState=(\w+).*\bRestarts=(\d+)", text)
    return Life(found[1], int(found[2])) if found else None


def requeue(job: str) -> str:
    """Ask SLURM to requeue a running job; returns its message if it refuses, else "".

    Check `life` to see whether it was requeued.
    """
    return _run("scontrol", "requeue", job)[1]


def reason(job: str) -> str:
    """Return SLURM's reason why a job is pending; "" if SLURM cannot be reached."""
    found = re.search(r"\bReason=(\S+)", _ask("scontrol", "show", "job", "--oneliner", job))
    return found[1] if found else ""


def cancel(job: str) -> None:
    """Cancel a job, or all tasks of an array."""
    _ask("scancel", job)


def states(jobs: Iterable[str]) -> dict[str, str]:
    """Return states by job id, with the reason for pending jobs: `PENDING (Priority)`.

    Makes two calls for all jobs together: the accounting lags seconds behind the controller, which soon
    forgets finished jobs. Jobs unknown to both are left out.
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
    """Describe the partitions' time limits, nodes and devices in one line; "" if unknown."""
    rows = _rows(_ask("sinfo", "-h", "-o", "%R|%l|%D|%c|%G"))
    return "; ".join(
        f"{name}: time up to {limit}, {nodes} nodes of {cpus} CPUs"
        + ("" if devices == "(null)" else f" and {devices}")
        for name, limit, nodes, cpus, devices in rows
    )


def _ask(*command: str) -> str:
    return _run(*command)[0]


def _run(*command: str) -> tuple[str, str]:
    """Run a command; returns its output, and the last line of its error message if it fails."""
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
