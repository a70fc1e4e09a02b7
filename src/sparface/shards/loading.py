"""Decode batches in worker processes, in reused memory that they share with the main process."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sparface.errors import UserError
from sparface.machine import keep_freed_memory
from sparface.shards.mix import MixedStream
from sparface.shards.stream import Batch, FaceStream

PREFETCH = 2
"""Batches that each worker process decodes ahead."""
STOP_PATIENCE = 60
"""Seconds after SIGTERM before a worker terminates by itself, if the training process has not ended it."""


@dataclass(frozen=True)
class Loader:
    """Iterates over the batches of a stream, in order; each `iter` starts at the beginning of the stream.

    A `UserError` raised in a worker process is raised again unchanged.
    """

    stream: FaceStream | MixedStream
    workers: int
    """Number of decoding processes. 0: decode in this process."""
    pin_memory: bool = False

    def __iter__(self) -> Iterator[Batch]:
        batches: DataLoader[Batch | _Sent | UserError] = DataLoader(
            _Guarded(self.stream),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=PREFETCH if self.workers else None,
            pin_memory=self.pin_memory and not self.workers,
            worker_init_fn=_begin,
        )
        slots: dict[tuple[int, int], Tensor] = {}
        with _no_collection():
            received = iter(batches)
        for batch in received:
            if isinstance(batch, UserError):
                raise batch
            yield batch.received(slots, self.pin_memory) if isinstance(batch, _Sent) else batch


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Context manager: turn the garbage collector off; workers that are forked inside start without it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _begin(worker: int) -> None:
    """Start a worker process.

    It leaves the trainer's objects alone: to finalize its process groups, whose threads a fork does not copy,
    can crash. It ignores the signals that schedulers send to all processes; the trainer saves and ends its
    workers. A worker that is still running `STOP_PATIENCE` seconds after SIGTERM terminates by itself.
    """
    gc.freeze()
    gc.enable()
    keep_freed_memory()
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(STOP_PATIENCE))


_TAKEN, _FREE = 1, 0
_HEAD = 65
"""Bytes before the faces in a slot: the first says whether the slot is taken. Odd, see `codec.room`."""


class _Slots:
    """The memory of one worker's batches, which it shares with the main process.

    torch would allocate new shared memory for each batch; clearing, mapping and freeing its pages takes a
    fifth of the decoding time. A slot is used again when the main process has no tensor left that shows its
    faces; a worker has as many slots as are taken at once.
    """

    def __init__(self) -> None:
        self._all: list[Tensor] = []
        self.latest = -1
        """Number of the slot that was taken last."""

    def take(self, *shape: int) -> NDArray[np.uint8]:
        """The memory of a free slot, uint8 [*shape]; the shape is always the same."""
        free = (number for number, slot in enumerate(self._all) if slot[0] == _FREE)
        self.latest = next(free, len(self._all))
        if self.latest == len(self._all):
            slot = torch.empty(_HEAD + math.prod(shape), dtype=torch.uint8)
            self._all.append(slot.share_memory_())  # type: ignore[no-untyped-call]
        memory: NDArray[np.uint8] = self._all[self.latest].numpy()
        memory[0] = _TAKEN
        return memory[_HEAD:].reshape(shape)

    def newest(self, known: int) -> Tensor | None:
        """The slot that was taken last, unless it is one of the first `known`."""
        return self._all[self.latest] if self.latest >= known else None


@dataclass
class _Sent:
    """A batch from a worker, with the images in one of the worker's slots."""

    worker: int
    slot: int
    memory: Tensor | None
    """The slot, uint8; sent with its first batch only."""
    shape: torch.Size
    """[b, H, W, 3]"""
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]
    keys: list[str]
    bad: list[str]

    @classmethod
    def all_of(cls, stream: FaceStream | MixedStream, worker: int) -> Iterator[_Sent]:
        slots, sent = _Slots(), 0
        for batch in stream.decoded(slots.take):
            memory, shape = slots.newest(sent), batch.images.permute(0, 2, 3, 1).shape
            sent += memory is not None
            labels, positions = batch.labels.numpy(), batch.positions.numpy()
            yield cls(worker, slots.latest, memory, shape, labels, positions, batch.keys, batch.bad)

    def received(self, known: dict[tuple[int, int], Tensor], pin_memory: bool) -> Batch:
        """The batch in its slot, or in page-locked memory; `known` holds the slots of all workers."""
        if self.memory is not None:
            known[self.worker, self.slot] = self.memory
        memory = known[self.worker, self.slot].numpy()
        images = memory[_HEAD:].reshape(self.shape)
        if pin_memory:
            pinned = torch.empty(self.shape, dtype=torch.uint8, pin_memory=True)
            pinned.numpy()[:] = images  # torch's copy would wake all of its threads
            memory[0] = _FREE
        else:
            weakref.finalize(images, _release, memory, os.getpid()).atexit = False
        faces = pinned if pin_memory else torch.from_numpy(images)  # which keeps `images` alive
        labels, positions = torch.from_numpy(self.labels), torch.from_numpy(self.positions)
        batch = Batch(faces.permute(0, 3, 1, 2), labels, self.keys, positions, self.bad)
        return batch.pin_memory() if pin_memory else batch


def _release(memory: NDArray[np.uint8], process: int) -> None:
    """Let a slot be used again, unless this is a fork of the process that shows its faces."""
    if os.getpid() == process:
        memory[0] = _FREE


class _Guarded(IterableDataset["Batch | _Sent | UserError"]):
    """Yields a `UserError` as an item, because torch wraps exceptions of workers in a traceback."""

    def __init__(self, stream: FaceStream | MixedStream) -> None:
        super().__init__()
        self._stream = stream

    def __iter__(self) -> Iterator[Batch | _Sent | UserError]:
        info = get_worker_info()
        try:
            yield from _Sent.all_of(self._stream, info.id) if info else self._stream
        except UserError as error:
            yield error
