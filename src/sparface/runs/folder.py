"""The folder of a run, claimed by one job at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sparface.errors import UserError
from sparface.files import open_lock, try_lock


class Busy(UserError):
    """Another job trains in the folder."""


@contextmanager
def claim(out: Path, rank: int, patience: float = 0) -> Iterator[None]:
    """Lock `out` for this job; the lock is released when the process ends, even if it is killed.

    Waits up to `patience` seconds for a previous job that is still shutting down. Raises `Busy` if another
    job is training there, and `UserError` if `out` holds anything other than a run.
    """
    if rank:
        yield
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; --out must be a folder")
    if (
        out.is_dir()
        and any(out.iterdir())
        and not (out / "config.yaml").exists()
        and not (out / ".lock").exists()
    ):
        raise UserError(f"{out}: not empty and not a run; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with open_lock(out / ".lock") as lock:
        if not lock_within(patience, lock, out):
            raise Busy(f"{out}: another job is training there; wait for it or choose another --out")
        yield


def lock_within(patience: float, lock: IO[bytes], out: Path) -> bool:
    """Whether the lock was acquired within `patience` seconds; prints a line if it has to wait."""
    deadline, announced = time.monotonic() + patience, False
    while not try_lock(lock):
        if time.monotonic() >= deadline:
            return False
        if not announced:
            print(f"{out}: waiting up to {patience:.0f} s for the previous attempt to end", flush=True)
            announced = True
        time.sleep(1)
    return True
