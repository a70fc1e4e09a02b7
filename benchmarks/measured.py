"""Shared measuring and reporting: candidates in turns, medians and spread, one JSON line at the end."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def in_turns(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one warm-up round.

    All candidates run in every round, in alternating order, so a slowdown of the machine affects all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            gc.collect()
            began = time.perf_counter()
            candidates[name]()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that the work takes by the clock (`time.process_time`: seconds of CPU time)."""
    began = clock()
    work()
    return clock() - began


def memory(name: str) -> int:
    """Memory of this process in bytes (VmRSS: resident; VmHWM: peak resident)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def over(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """The ratio of the first to the second, round by round."""
    return [a / b for a, b in zip(first, second, strict=True)]


def table(rows: Mapping[str, Sequence[float]], unit: str) -> None:
    """Print the median, minimum and maximum of each row."""
    width = max(map(len, rows))
    print(f"{'':{width}} {'median':>10} {'minimum':>10} {'maximum':>10}  {unit}")
    for name, values in rows.items():
        figures = (statistics.median(values), min(values), max(values))
        print(f"{name:{width}} " + " ".join(f"{figure:>10,.4g}" for figure in figures))


def conclude(
    name: str, ratios: Sequence[float], bar: float, *, at_most: bool = False, **settings: Any
) -> int:
    """Print the last line, a JSON object; return the exit code, 0 if the median ratio reaches the target."""
    ratio = statistics.median(ratios)
    passed = ratio <= bar if at_most else ratio >= bar
    line = {"name": name, "ratio": round(ratio, 4), "bar": bar, "pass": passed}
    line["spread"] = [round(min(ratios), 4), round(max(ratios), 4)]
    print(json.dumps(line | settings))
    return 0 if passed else 1
