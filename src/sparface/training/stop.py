"""Please stop now: signals become a flag that the loop reads between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether somebody has asked this process to stop, and by which signal."""

    def __init__(self) -> None:
        self.reason = ""

    @property
    def requested(self) -> bool:
        return bool(self.reason)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means it
        self.reason = signal.Signals(number).name


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the signals of schedulers and of Ctrl-C; the previous handlers come back at the end."""
    request = StopRequest()
    previous = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
