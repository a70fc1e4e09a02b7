"""Show progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LINE_SECONDS = 15.0


def track(
    items: Iterable[T],
    *,
    total: int,
    done: int = 0,
    unit: str,
    size: Callable[[T], int] = lambda item: 1,
    note: Callable[[], str] = lambda: "",
) -> Iterator[T]:
    """Yield `items`, showing the rate and the remaining time on standard error.

    `total` is the whole work and `done` the part finished by an earlier run, both in `unit`; each item
    counts `size(item)` units. `note()` is appended to the display. If standard error is not a terminal, a
    line is printed every 15 seconds and at the end.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, unit=f" {unit}", smoothing=0.05) as bar:
            for item in items:
                yield item
                bar.set_postfix_str(note(), refresh=False)
                bar.update(size(item))
        return
    started = last = time.monotonic()
    count = done
    for item in items:
        yield item
        count += size(item)
        if time.monotonic() - last > _LINE_SECONDS or count == total:
            last = time.monotonic()
            line = tqdm.format_meter(
                count, total, last - started, ncols=0, unit=f" {unit}", initial=done, postfix=note() or None
            )
            print(line.strip(), file=sys.stderr, flush=True)
