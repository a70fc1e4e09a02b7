"""Align photos on disk in several processes, with results in the order of the photos."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context, parent_process

import numpy as np

from sparface.faces.aligner import Aligner, Alignment, Result
from sparface.faces.photos import BadPhoto, Photo, open_photo
from sparface.machine import keep_freed_memory

_CHUNK = 8
"""Photos per task of a worker process; photos of the same size are processed as a batch."""
_CHUNK_PIXELS = 4_000_000
"""Maximum number of pixels per batch; bounds memory for large photos."""

_aligner: Aligner | None = None
"""The aligner of a worker process."""


def aligned(photos: list[Photo], alignment: Alignment, workers: int, done: int = 0) -> Iterator[Result]:
    """Align all photos after the first `done` in `workers` processes, and yield the results in order.

    Results depend on neither `workers` nor `done`, because photos are always grouped in the same batches.
    Memory is bounded: workers process only a few chunks ahead. With more than one worker, the calling script
    needs the usual `if __name__ == "__main__"` guard.
    """
    first = done // _CHUNK * _CHUNK
    chunks = [photos[start : start + _CHUNK] for start in range(first, len(photos), _CHUNK)]
    if workers <= 1 or len(chunks) <= 1:
        aligner = Aligner(alignment)
        results: Iterator[list[Result]] = (_align_chunk(aligner, chunk) for chunk in chunks)
    else:
        results = _in_order(chunks, alignment, min(workers, len(chunks)))
    return islice(chain.from_iterable(results), done - first, None)


def _in_order(chunks: list[list[Photo]], alignment: Alignment, workers: int) -> Iterator[list[Result]]:
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (alignment,))
    waiting: deque[Future[list[Result]]] = deque()
    ahead = iter(chunks)
    try:
        with _without_interrupts():  # workers start here and ignore SIGINT; the main process stops them
            waiting.extend(pool.submit(_work, chunk) for chunk in islice(ahead, 3 * workers))
        while waiting:
            results = waiting.popleft().result()
            waiting.extend(pool.submit(_work, chunk) for chunk in islice(ahead, 1))
            yield results
    except BrokenProcessPool:
        message = "an alignment process died (out of memory?); run again with fewer workers to resume"
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


def _start_worker(alignment: Alignment) -> None:
    global _aligner
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _aligner = Aligner(alignment)


def _end_with_parent() -> None:
    """Exit when the main process dies: if it is killed, workers would wait for tasks forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(chunk: list[Photo]) -> list[Result]:
    assert _aligner is not None
    return _align_chunk(_aligner, chunk)


def _align_chunk(aligner: Aligner, chunk: list[Photo]) -> list[Result]:
    return one_thread(
        lambda: [
            result
            for batch in _batches(chunk)
            for result in ([batch] if isinstance(batch, str) else aligner.align_all(batch))
        ]
    )


def _batches(chunk: list[Photo]) -> Iterator[list[np.ndarray] | str]:
    """Open the photos of a chunk; yields batches of consecutive photos of one size, or a photo's problem."""
    batch: list[np.ndarray] = []
    for photo in map(_open, chunk):
        if batch and (isinstance(photo, str) or not _fits(photo, batch)):
            yield batch
            batch = []
        if isinstance(photo, str):
            yield photo
        else:
            batch.append(photo)
    if batch:
        yield batch


def _fits(photo: np.ndarray, batch: list[np.ndarray]) -> bool:
    height, width = photo.shape[:2]
    return photo.shape == batch[0].shape and (len(batch) + 1) * height * width <= _CHUNK_PIXELS


def _open(photo: Photo) -> np.ndarray | str:
    try:
        return photo.problem or open_photo(photo.path)
    except BadPhoto as problem:
        return str(problem)


def one_thread(work: Callable[[], list[Result]]) -> list[Result]:
    """Run `work` with one torch thread: photos are small, and another summation order would change bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)
