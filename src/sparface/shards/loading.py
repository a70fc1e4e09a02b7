"""Decode batches in worker processes and pass them on in reused shared memory."""

from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sparface.errors import UserError
from sparface.machine import keep_freed_memory
from sparface.shards.stream import Batch

PREFETCH = 2
"""Batches that each worker process decodes ahead."""
STOP_PATIENCE = 60
"""Seconds after SIGTERM before a worker terminates by itself, if the training process has not ended it."""


@dataclass(frozen=True)
class Loader:
    """Iterates over the batches of a stream, in order; each `iter` starts at the beginning of the stream.

    A `UserError` raised in a worker process is raised again unchanged.
    """

    stream: IterableDataset[Batch]
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
        slots: dict[int, Tensor] = {}
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


@dataclass
class _Sent:
    """A batch from a worker, with the images in one of the worker's slots of shared memory.

    torch would allocate new shared memory for each batch; clearing, mapping and freeing its pages takes a
    fifth of the decoding time. The slots are reused instead: a worker is at most `PREFETCH` batches ahead of
    the batch that the main process took last, so `PREFETCH + 1` slots suffice.
    """

    worker: int
    slot: int
    slots: Tensor | None
    """uint8 [PREFETCH + 1, b, H, W, 3] in shared memory; sent with the worker's first batch only."""
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]
    keys: list[str]
    bad: list[str]

    @classmethod
    def all_of(cls, stream: IterableDataset[Batch], worker: int) -> Iterator[_Sent]:
        slots: Tensor | None = None
        for number, batch in enumerate(stream):
            images, slot = batch.images.permute(0, 2, 3, 1), number % (PREFETCH + 1)
            if slots is None:
                slots = torch.empty((PREFETCH + 1, *images.shape), dtype=torch.uint8)
                slots.share_memory_()  # type: ignore[no-untyped-call]
            slots[slot].copy_(images)
            labels, positions = batch.labels.numpy(), batch.positions.numpy()
            yield cls(worker, slot, None if number else slots, labels, positions, batch.keys, batch.bad)

    def received(self, known: dict[int, Tensor], pin_memory: bool) -> Batch:
        """Copy the batch out of its slot; `known` holds the slots of each worker."""
        if self.slots is not None:
            known[self.worker] = self.slots
        sent = known[self.worker][self.slot]
        images = torch.empty(sent.shape, dtype=torch.uint8, pin_memory=pin_memory)
        images.numpy()[:] = sent.numpy()  # torch's copy would wake all of its threads
        labels, positions = torch.from_numpy(self.labels), torch.from_numpy(self.positions)
        batch = Batch(images.permute(0, 3, 1, 2), labels, self.keys, positions, self.bad)
        return batch.pin_memory() if pin_memory else batch


class _Guarded(IterableDataset["Batch | _Sent | UserError"]):
    """Yields a `UserError` as an item, because torch wraps exceptions of workers in a traceback."""

    def __init__(self, stream: IterableDataset[Batch]) -> None:
        super().__init__()
        self._stream = stream

    def __iter__(self) -> Iterator[Batch | _Sent | UserError]:
        info = get_worker_info()
        try:
            yield from _Sent.all_of(self._stream, info.id) if info else self._stream
        except UserError as error:
            yield error
