"""Align photos on disk in batches, in several processes, with results in the order of the photos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice

import numpy as np

from sparface.faces.aligner import Aligner, Alignment, Result
from sparface.faces.photos import BadPhoto, Photo, open_photo
from sparface.faces.workers import in_order

_CHUNK = 16
"""Photos per task of a worker process; photos of the same size are processed as a batch."""
_CHUNK_PIXELS = 4_000_000
"""Maximum number of pixels per batch; bounds memory for large photos."""


def aligned(photos: list[Photo], alignment: Alignment, workers: int, done: int = 0) -> Iterator[Result]:
    """Align all photos after the first `done` in `workers` processes, and yield the results in order.

    Results depend on neither `workers` nor `done`, because photos are always grouped in the same batches.
    """
    first = done // _CHUNK * _CHUNK
    chunks = [photos[start : start + _CHUNK] for start in range(first, len(photos), _CHUNK)]
    results = in_order(chunks, partial(_ChunkAligner, alignment), min(workers, len(chunks)))
    return islice(chain.from_iterable(results), done - first, None)


class _ChunkAligner:
    def __init__(self, alignment: Alignment) -> None:
        self._aligner = Aligner(alignment)

    def __call__(self, chunk: list[Photo]) -> list[Result]:
        return one_thread(
            lambda: [
                result
                for batch in _batches(chunk)
                for result in ([batch] if isinstance(batch, str) else self._aligner.align_all(batch))
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
