"""The watch: what can go wrong in an adversarial training, seen from the logged means.

It looks at one interval's means at a time (host side, so it costs the device nothing), says what
is wrong and which policy the configuration has for it; the loop acts. Its memory travels in the
checkpoint, so that a rollback also restores what the watch knew then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparface.config import Policy, WatchConfig
from sparface.errors import UserError

WATCHED = ("loss", "embedding_cosine", "mask_mean", "perturbation_mean", "shift", "fooled")
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

    def __init__(self, config: WatchConfig) -> None:
        self.config = config
        self.counts: dict[str, int] = {}
        self._mean = 0.0
        self._intervals = 0
        self._skipped = 0
        self._standing: set[str] = set()

    def inspect(self, images_seen: int, metrics: dict[str, float], updates: int = 1) -> list[Anomaly]:
        """The anomalies of one interval of `updates`; metrics that are absent are not judged.

        Reads `loss`, `skipped` (the number of updates dropped for a gradient that is not finite),
        `embedding_cosine` (mean over pairs), `mask_mean`, `perturbation_mean` (mean |ε·δ·m|),
        `shift` (cosine distance between a face and its sparring face) and `fooled` (share of faces whose
        sparring faces are no longer recognized). A state that lasts, such as a collapse, is counted each
        time but reported when it begins.
        """
        jumps = [*self._non_finite(metrics), *self._hopeless(metrics, updates), *self._loss_spike(metrics)]
        states = [*self._collapse(metrics), *self._generator(metrics), *self._imbalance(metrics)]
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
        for name in WATCHED:
            if name in metrics and not math.isfinite(metrics[name]):
                yield Anomaly("non_finite", policy, f"{name} is {metrics[name]}", metrics[name])
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

    def _collapse(self, metrics: dict[str, float]) -> Iterator[Anomaly]:
        cosine, bound = metrics.get("embedding_cosine", math.nan), self.config.collapse_cosine
        if cosine > bound:
            message = f"embeddings collapse: mean pairwise cosine {cosine:.4f} is over {bound:g}"
            yield Anomaly("collapse", self.config.collapse, message, cosine)

    def _generator(self, metrics: dict[str, float]) -> Iterator[Anomaly]:
        c, policy = self.config, self.config.generator
        mask, size = metrics.get("mask_mean", math.nan), metrics.get("perturbation_mean", math.nan)
        if mask < c.mask_low:
            yield Anomaly("dead_mask", policy, f"dead mask: mean {mask:.4g} is under {c.mask_low:g}", mask)
        if mask > c.mask_high:
            message = f"saturated mask: mean {mask:.4g} is over {c.mask_high:g}"
            yield Anomaly("saturated_mask", policy, message, mask)
        if size < c.perturbation_low:
            message = f"vanished perturbation: mean {size:.3g} is under {c.perturbation_low:g}"
            yield Anomaly("vanished_perturbation", policy, message, size)
        shift = metrics.get("shift", math.nan)
        bound = c.shift_low * (1 - metrics.get("embedding_cosine", math.nan))
        if shift < bound:
            message = (
                f"dead generator: shift {shift:.3g} is under {bound:.3g}, {c.shift_low:g} of the mean "
                f"distance between faces (fooled {metrics.get('fooled', math.nan):.2g})"
            )
            yield Anomaly("dead_generator", policy, message, shift)

    def _imbalance(self, metrics: dict[str, float]) -> Iterator[Anomaly]:
        shift, policy = metrics.get("shift", math.nan), self.config.imbalance
        if shift > self.config.imbalance_high:
            message = f"generator wins: shift {shift:.4g} is over {self.config.imbalance_high:g}"
            yield Anomaly("generator_wins", policy, message, shift)


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
