"""Tests on a real SLURM: `slurm/testbed up` first, as root; without it they are skipped."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_testbed import STATE, Testbed, queue

SECONDS_FOR_OTHERS = 120


def take_turn(lock: int) -> bool:
    """Waits for other test sessions and for jobs that are there: from now on tests cancel all jobs."""
    end = time.monotonic() + SECONDS_FOR_OTHERS
    while time.monotonic() < end:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.5)
            continue
        if not queue():
            return True
        fcntl.flock(lock, fcntl.LOCK_UN)
        time.sleep(0.5)
    return False


@pytest.fixture(scope="session")
def running_testbed() -> Iterator[None]:
    """Skips where the testbed is not up and well; brings nothing up itself."""
    if os.geteuid() != 0:
        pytest.skip("the cluster tests need root")
    well, said = Testbed(Path.cwd()).status()
    if not well:
        pytest.skip(f"no SLURM testbed ({said}); bring it up with: sudo slurm/testbed up")
    lock = os.open(STATE / "nodes", os.O_RDONLY)
    try:
        if not take_turn(lock):
            pytest.skip(f"others have used the testbed for {SECONDS_FOR_OTHERS} s; `squeue` shows their jobs")
        yield
    finally:
        os.close(lock)


@pytest.fixture
def testbed(running_testbed: None, tmp_path: Path) -> Iterator[Testbed]:
    """The running testbed: no jobs, all links and nodes up, before the test and after it."""
    bed = Testbed(tmp_path)
    bed.clean()
    yield bed
    bed.clean()
