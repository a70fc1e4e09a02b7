"""Means of metrics over a logging interval, kept on the device until asked for."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from sparface.training.strategy import Strategy


class Meter:
    """Sums metrics without waiting for the device; one transfer per `means`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start the next interval."""
        self.names: list[str] = []
        self.sums: Tensor | None = None  # [metrics], float32
        self.updates = 0
        self.images = 0
        self.bad: list[str] = []
        self.since = time.perf_counter()

    def add(self, metrics: dict[str, Tensor], images: int, bad: list[str]) -> None:
        """Add one update's metrics (scalars on the device); values that are not finite count as 0."""
        values = torch.stack([value.detach().float() for value in metrics.values()]).nan_to_num(0.0, 0.0, 0.0)
        self.names = list(metrics)
        self.sums = values if self.sums is None else self.sums + values
        self.updates += 1
        self.images += images
        self.bad += bad

    def means(self, strategy: Strategy) -> tuple[dict[str, float], list[str]]:
        """Mean of each metric over the interval, and the broken samples, of all ranks (collective);
        starts the next interval. `skipped` is a count; `images_per_second` is of all ranks."""
        assert self.sums is not None
        values = (strategy.mean(self.sums) / self.updates).tolist()
        found = dict(zip(self.names, values, strict=True))
        found["skipped"] = round(found["skipped"] * self.updates)
        found["images_per_second"] = self.images / (time.perf_counter() - self.since)
        bad = [name for names in strategy.everyone(self.bad) for name in names]
        self.reset()
        return found, bad

    def state_dict(self, strategy: Strategy) -> dict[str, Any]:
        """The open interval of all ranks as JSON (collective)."""
        sums = [] if self.sums is None else self.sums.tolist()
        return {"names": self.names, "sums": strategy.everyone(sums), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any], strategy: Strategy) -> None:
        """Go on in an interval: this rank with its own sums, so that the means are those of an undisturbed
        run to the bit; on another number of ranks each with the mean."""
        self.reset()
        self.names, self.updates = state["names"], state["updates"]
        if self.names:
            ranks = torch.tensor(state["sums"], device=strategy.device)  # [ranks, metrics]
            self.sums = ranks[strategy.rank] if len(ranks) == strategy.world_size else ranks.mean(0)
