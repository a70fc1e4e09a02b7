"""The folder of a run, claimed by one job at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparface.errors import UserError


@contextmanager
def claim(out: Path, rank: int) -> Iterator[None]:
    """Hold `out` for this job; the lock ends with the process, however it ends.

    Raises `UserError` when another job trains there, or when `out` holds something else than a run.
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
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{out}: another job is training there; wait for it or choose another --out"
            ) from None
        yield
