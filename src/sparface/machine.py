"""What the machine gives to this process (CPU cores and memory) and asks of it (to stop)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C and the signals that schedulers send before they kill a process."""


def usable_cores() -> int:
    """Number of CPU cores that this process and its children may use, at least 1."""
    return max(1, min(_affinity(), _allotted()))


def cores_per_process(processes: int) -> int:
    """Number of CPU cores for each of a job's `processes` on this machine, at least 1.

    Schedulers differ: they may bind each process to separate cores, bind all processes to one shared set
    of cores, or only publish the number of cores.
    """
    return max(1, min(_affinity(), _allotted() // processes))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _allotted() -> int:
    """Number of cores allocated to the job on this machine by SLURM, which not every cluster enforces."""
    return int(os.environ.get("SLURM_CPUS_ON_NODE") or _affinity())


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for reuse instead of returning it to the system (glibc only).

    Otherwise every tensor of a few megabytes gets new pages, which the kernel must clear first; this took
    40 % of the CPU time of a small convolutional network. The process keeps its peak memory.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option in (trim_threshold, mmap_threshold):
            library.mallopt(option, 1 << 30)


@contextlib.contextmanager
def handling_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context manager: call `handler` for each stop signal; restores the previous handlers on exit."""
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
