"""What this process may use of its machine."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """CPU cores that the scheduler lets this process use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
