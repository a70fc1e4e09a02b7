"""The watch: what can go wrong in an adversarial training, seen from the logged means.

It looks at one interval's means at a time (host side, so it costs the device nothing), says what
is wrong and which policy the configuration has for it; the loop acts. Its memory travels in the
checkpoint, so that a rollback also restores what the watch knew then.
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
"""Intervals over which the running mean of the loss forgets."""
WARMUP = 5
"""Intervals before a loss can be a spike."""
HOPELESS = 20
"""Intervals in a row without a single applied update after which training stops. As many halvings as the
gradient scaler of fp16 could need at its start, also where every update is logged."""


@dataclass(frozen=True)
class Anomaly:
    """Something that went wrong in an interval; `message` names the metric, its value and the bound."""

    kind: str
    policy: Policy
    message: str
    value: float


class Watch:
    """Judges the means of each interval. `counts` says in how many intervals each kind was seen."""

    def __init__(self, config: WatchConfig, rules: Sequence[Rule] = ()) -> None:
        self.config, self.rules = config, rules
        self.counts: dict[str, int] = {}
        self._mean = 0.0
        self._intervals = 0
        self._skipped = 0
        self._standing: set[str] = set()

    def inspect(self, images_seen: int, metrics: dict[str, float], updates: int = 1) -> list[Anomaly]:
        """The anomalies of one interval of `updates`; metrics that are absent are not judged.

        Reads `loss`, `skipped` (the number of updates dropped for a gradient that is not finite) and the
        metrics of the recipe's rules. A state that lasts, such as a collapse, is counted each time but
        reported when it begins.
        """
        jumps = [*self._non_finite(metrics), *self._hopeless(metrics, updates), *self._loss_spike(metrics)]
        states = [anomaly for rule in self.rules if (anomaly := judge(rule, metrics))]
        for anomaly in jumps + states:
            self.counts[anomaly.kind] = self.counts.get(anomaly.kind, 0) + 1
        begun = [anomaly for anomaly in states if anomaly.kind not in self._standing]
        self._standing = {anomaly.kind for anomaly in states}
        return jumps + begun

    def state_dict(self) -> dict[str, Any]:
        """All that it remembers, as JSON."""
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
            # a gradient's norm (NETWORK/gradient_norm) is not finite where its update was dropped, see below
            if "/" not in name and not math.isfinite(value):
                yield Anomaly("non_finite", policy, f"{name} is {value}", value)
                return
        skipped = metrics.get("skipped", 0.0)
        if skipped > 0:
            message = f"updates were dropped for a gradient that is not finite (skipped {skipped:g})"
            yield Anomaly("non_finite", policy, message, skipped)

    def _hopeless(self, metrics: dict[str, float], updates: int) -> Iterator[Anomaly]:
        skipped = metrics.get("skipped", 0.0)
        self._skipped = self._skipped + 1 if skipped >= updates else 0
        if self._skipped >= HOPELESS:
            message = (
                f"no update could be applied in {self._skipped} intervals: every gradient is not finite; "
                "lower optimizer.learning_rate or use another training.precision"
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
            loss = bound  # a lasting new level becomes the mean, a single spike hardly moves it
        self._intervals += 1
        self._mean += (loss - self._mean) / min(self._intervals, MEMORY)


def judge(rule: Rule, means: Mapping[str, float]) -> Anomaly | None:
    """What a rule says of an interval's means; nothing where one that it asks for is absent or not finite."""
    value = means.get(rule.metric, math.nan)
    below = rule.below(means) if callable(rule.below) else rule.below
    for bound, crossed in ((rule.above, operator.gt), (below, operator.lt)):
        if bound is not None and crossed(value, bound):
            told = defaultdict(lambda: math.nan, means) | {"value": value, "bound": bound}
            return Anomaly(rule.kind, rule.policy, rule.message.format_map(told), value)
    return None


def validate_networks(networks: dict[str, nn.Module]) -> dict[str, int]:
    """Parameters per network, after a look at each one before training starts.

    Raises `UserError` naming network and parameter when a parameter or buffer is empty or not
    finite, as from a damaged weights file, and when a network has no parameters.
    """
    for network, module in networks.items():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.numel() == 0:
                raise UserError(
                    f"{network}.{name}: has shape {list(tensor.shape)}; check the network's sizes"
                )
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UserError(f"{network}.{name}: has values that are not finite; use other weights")
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in networks.items()}
    for network, count in counts.items():
        if count == 0:
            raise UserError(f"{network}: has no parameters to train")
    return counts
