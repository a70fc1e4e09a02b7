"""Turn signals into a stop request that the training loop checks between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sparface.machine import handling_stop_signals


class StopRequest:
    """Whether this process was asked to stop, and by which signal (`reason`)."""

    def __init__(self) -> None:
        self.reason = ""

    @property
    def requested(self) -> bool:
        return bool(self.reason)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C stops at once
        self.reason = signal.Signals(number).name


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Context manager: catch Ctrl-C and the signals that schedulers send; restores the handlers on exit."""
    request = StopRequest()
    with handling_stop_signals(request):
        yield request
