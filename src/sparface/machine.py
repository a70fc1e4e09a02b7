"""What this process may use of its machine."""

from __future__ import annotations

import contextlib
import ctypes
import os


def usable_cores() -> int:
    """CPU cores that this process and its children may use, at least 1."""
    return max(1, min(_affinity(), _allotted()))


def cores_per_process(processes: int) -> int:
    """CPU cores for each of a job's `processes` on this machine, at least 1.

    A scheduler may bind each process to its own cores, all of them to theirs together, or only say
    how many they are.
    """
    return max(1, min(_affinity(), _allotted() // processes))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _allotted() -> int:
    """Cores of the job on this machine: SLURM's word, which not every cluster also enforces."""
    return int(os.environ.get("SLURM_CPUS_ON_NODE") or _affinity())


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensor instead of giving it back (glibc only).

    Otherwise each tensor of some megabytes comes as new pages that the kernel clears first, which took 40 %
    of the CPU time of a small convolutional network. The process stays at its peak of memory.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option in (trim_threshold, mmap_threshold):
            library.mallopt(option, 1 << 30)
