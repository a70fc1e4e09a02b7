"""Means of metrics over a logging interval, kept on the device until they are needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sparface.training.strategies.base import Strategy


@dataclass(frozen=True)
class Interval:
    """Measurements between two log lines, over all ranks."""

    values: dict[str, float]
    """Mean of each metric over its finite values, or NaN without any. `skipped` is a count;
    `images_per_second` is the total over all ranks."""
    updates: int
    bad: list[str]
    """Samples that could not be decoded."""


class Meter:
    """Accumulates metrics without synchronising with the device; one transfer per `interval`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start the next interval."""
        self.names: list[str] = []
        self.sums: Tensor | None = None  # [2, metrics], float32: sum and count of finite values
        self.updates = 0
        self.images = 0
        self.bad: list[str] = []
        self.since = time.perf_counter()

    def add(self, metrics: dict[str, Tensor], images: int, bad: list[str]) -> None:
        """Add one update's metrics (scalars on the device), ignoring non-finite values."""
        self._know([name for name in metrics if name not in self.names])
        if absent := [name for name in self.names if name not in metrics]:  # of phases that skip this step
            missing = next(iter(metrics.values())).new_full((), torch.nan)
            metrics = metrics | dict.fromkeys(absent, missing)
        values = torch.stack([metrics[name].detach().float() for name in self.names])
        finite = torch.isfinite(values)
        sums = torch.stack([torch.where(finite, values, 0.0), finite.float()])
        self.sums = sums if self.sums is None else self.sums + sums
        self.updates += 1
        self.images += images
        self.bad += bad

    def _know(self, new: list[str]) -> None:
        self.names += new
        if self.sums is not None and new:
            self.sums = torch.cat([self.sums, self.sums.new_zeros(2, len(new))], 1)

    def interval(self, strategy: Strategy) -> Interval:
        """Return the interval up to now and start the next one (collective)."""
        assert self.sums is not None
        sums, counts = strategy.mean(self.sums)
        values = dict(zip(self.names, (sums / counts).tolist(), strict=True))  # 0 / 0 is NaN
        values["skipped"] = round(values["skipped"] * self.updates)
        values["images_per_second"] = self.images / (time.perf_counter() - self.since)
        bad = [name for names in strategy.everyone(self.bad) for name in names]
        found = Interval(values, self.updates, bad)
        self.reset()
        return found

    def state_dict(self, strategy: Strategy) -> dict[str, Any]:
        """Return the unfinished interval of all ranks, as JSON (collective)."""
        sums = [] if self.sums is None else self.sums.tolist()
        return {"names": self.names, "sums": strategy.everyone(sums), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any], strategy: Strategy) -> None:
        """Resume an interval.

        With the same number of ranks, each rank restores its own sums, and the means are bit-identical to
        those of an uninterrupted run. Otherwise every rank starts from the mean of the sums.
        """
        self.reset()
        self.names, self.updates = state["names"], state["updates"]
        if self.names:
            ranks = torch.tensor(state["sums"], device=strategy.device)  # [ranks, 2, metrics]
            self.sums = ranks[strategy.rank] if len(ranks) == strategy.world_size else ranks.mean(0)


def validation_line(images_seen: int, figures: dict[str, float]) -> str:
    """Format the most important figures of a validation."""
    shown = ", ".join(f"{name} {figures[name]:.4f}" for name in ("accuracy", "frechet") if name in figures)
    return f"{images_seen:>11,}  validation {shown}"


def progress_line(images_seen: int, total: int, values: dict[str, float], shown: Sequence[str]) -> str:
    """Format a line of progress: the metrics `shown`, speed and time left."""
    metrics = "  ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)
    rate = values["images_per_second"]
    # the last batch may go beyond the total
    left = tqdm.format_interval(max(0, total - images_seen) / max(rate, 1e-9))
    return f"{images_seen:>11,}/{total:,}  {metrics}  {rate:.1f} images/s  {left} left"
