"""The watch detects what can go wrong in adversarial training, from the logged means.

It inspects the means of one interval at a time, on the host, and reports each anomaly with its configured
policy; the loop acts on it. Its state is saved in checkpoints, so a rollback restores it too.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparface.config import Policy, WatchConfig
from sparface.errors import UserError
from sparface.recipes import Rule

MEMORY = 20
"""Window of the running mean of the loss, in intervals."""
WARMUP = 5
"""Intervals before a loss can count as a spike."""
HOPELESS = 20
"""Training stops after this many consecutive intervals without an applied update. The fp16 gradient scaler
may need that many halvings at the start, even if every update is logged."""


@dataclass(frozen=True)
class Anomaly:
    """A problem found in an interval; `message` gives the metric, its value and the bound."""

    kind: str
    policy: Policy
    message: str
    value: float


class Watch:
    """Checks the means of each interval. `counts` has the number of intervals per kind of anomaly."""

    def __init__(self, config: WatchConfig, rules: Sequence[Rule] = ()) -> None:
        self.config, self.rules = config, rules
        self.counts: dict[str, int] = {}
        self._mean = 0.0
        self._intervals = 0
        self._skipped = 0
        self._standing: set[str] = set()

    def inspect(self, images_seen: int, metrics: dict[str, float], updates: int = 1) -> list[Anomaly]:
        """Return the anomalies of an interval of `updates` updates; missing metrics are not checked.

        Reads `loss`, `skipped` (number of updates skipped because of a non-finite gradient) and the metrics
        of the recipe's rules. A lasting state, such as a collapse, is counted in every interval but reported
        only when it begins.
        """
        jumps = [*self._non_finite(metrics), *self._hopeless(metrics, updates), *self._loss_spike(metrics)]
        states = [anomaly for rule in self.rules if (anomaly := judge(rule, metrics))]
        for anomaly in jumps + states:
            self.counts[anomaly.kind] = self.counts.get(anomaly.kind, 0) + 1
        begun = [anomaly for anomaly in states if anomaly.kind not in self._standing]
        self._standing = {anomaly.kind for anomaly in states}
        return jumps + begun

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the watch, as JSON."""
        return {
            "mean": self._mean,
            "intervals": self._intervals,
            "skipped": self._skipped,
            "standing": sorted(self._standing),
            "counts": dict(self.counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean, self._intervals, self._skipped = state["mean"], state["intervals"], state["skipped"]
        self._standing, self.counts = set(state["standing"]), dict(state["counts"])

    def _non_finite(self, metrics: dict[str, float]) -> Iterator[Anomaly]:
        policy = self.config.non_finite
        for name, value in metrics.items():
            # a gradient norm (NETWORK/gradient_norm) is non-finite if its update was skipped, see below
            if "/" not in name and not math.isfinite(value):
                yield Anomaly("non_finite", policy, f"{name} is {value}", value)
                return
        skipped = metrics.get("skipped", 0.0)
        if skipped > 0:
            message = f"updates were skipped because of non-finite gradients (skipped {skipped:g})"
            yield Anomaly("non_finite", policy, message, skipped)

    def _hopeless(self, metrics: dict[str, float], updates: int) -> Iterator[Anomaly]:
        skipped = metrics.get("skipped", 0.0)
        self._skipped = self._skipped + 1 if skipped >= updates else 0
        if self._skipped >= HOPELESS:
            message = (
                f"all updates of the last {self._skipped} intervals had non-finite gradients; "
                "lower optimizer.learning_rate or change training.precision"
            )
            yield Anomaly("nothing_learned", "stop", message, skipped)

    def _loss_spike(self, metrics: dict[str, float]) -> Iterator[Anomaly]:
        loss = metrics.get("loss", math.nan)
        if not math.isfinite(loss):
            return
        bound = self.config.loss_spike_factor * self._mean
        if self._intervals >= WARMUP and 0 < bound < loss:
            message = (
                f"loss {loss:.4g} is over {self.config.loss_spike_factor:g} times its mean {self._mean:.4g}"
            )
            yield Anomaly("loss_spike", self.config.loss_spike, message, loss)
            loss = bound  # a lasting new level becomes the mean; a single spike hardly changes it
        self._intervals += 1
        self._mean += (loss - self._mean) / min(self._intervals, MEMORY)


def judge(rule: Rule, means: Mapping[str, float]) -> Anomaly | None:
    """Apply a rule to an interval's means; returns None if its metric is missing or not finite."""
    value = means.get(rule.metric, math.nan)
    below = rule.below(means) if callable(rule.below) else rule.below
    for bound, crossed in ((rule.above, operator.gt), (below, operator.lt)):
        if bound is not None and crossed(value, bound):
            values = defaultdict(lambda: math.nan, means) | {"value": value, "bound": bound}
            return Anomaly(rule.kind, rule.policy, rule.message.format_map(values), value)
    return None


def validate_networks(networks: dict[str, nn.Module]) -> dict[str, int]:
    """Check the networks before training starts; returns the number of parameters of each.

    Raises `UserError` naming network and tensor if a parameter or buffer is empty or not finite, for
    example because of a damaged weights file, or if a network has no parameters.
    """
    for network, module in networks.items():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.numel() == 0:
                raise UserError(
                    f"{network}.{name}: has shape {list(tensor.shape)}; check the network's sizes"
                )
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UserError(f"{network}.{name}: has non-finite values; use other weights")
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in networks.items()}
    for network, count in counts.items():
        if count == 0:
            raise UserError(f"{network}: has no parameters to train; remove it from the recipe's networks")
    return counts
