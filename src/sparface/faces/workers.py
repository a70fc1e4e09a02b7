"""Spread work over several processes, with results in the order of the work."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from sparface.machine import keep_freed_memory

Task = TypeVar("Task")
Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None
"""The work of a worker process."""


def in_order(
    tasks: Iterable[Task], prepare: Callable[[], Callable[[Task], Result]], workers: int
) -> Iterator[Result]:
    """Do all tasks in `workers` processes, and yield their results in the order of the tasks.

    Each process calls `prepare` once and the function that it returns once per task; both have to be
    picklable, unless `workers` is 1: then the work is done in this process. Memory is bounded: workers
    process only a few tasks ahead. With more than one worker, the calling script needs the usual
    `if __name__ == "__main__"` guard.
    """
    if workers <= 1:
        yield from map(prepare(), tasks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (prepare,))
    waiting: deque[Future[Result]] = deque()
    ahead = iter(tasks)
    try:
        with _without_interrupts():  # workers start here and ignore SIGINT; the main process stops them
            waiting.extend(pool.submit(_do, task) for task in islice(ahead, 3 * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(_do, task) for task in islice(ahead, 1))
            yield result
    except BrokenProcessPool:
        message = "a worker process died (out of memory?); run again with fewer workers to resume"
        raise RuntimeError(message) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT; processes started inside inherit the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(prepare: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work = prepare()


def _end_with_parent() -> None:
    """Exit when the main process dies: if it is killed, workers would wait for tasks forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(task: Any) -> Any:
    assert _work is not None
    return _work(task)
