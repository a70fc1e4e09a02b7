"""Every setting of `watch`: the bound, what is said beyond it, and the policy that it is reported with."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from sparring_watch import sparring_watch

from sparface.config import WatchConfig
from sparface.training.watch import Anomaly, Watch


class Bound(NamedTuple):
    """A value of a metric beyond the bound of that name is an anomaly with that policy and message."""

    name: str
    bound: float
    metric: str
    beyond: float
    kind: str
    policy: str
    message: str


BOUNDS = [
    Bound(
        *("collapse_cosine", 0.5, "embedding_cosine", 0.51234, "collapse", "collapse"),
        "embeddings collapsed: mean pairwise cosine 0.5123 is over 0.5",
    ),
    Bound(
        *("mask_low", 0.25, "mask_mean", 0.123456, "dead_mask", "dead"),
        "dead mask: mean 0.1235 is under 0.25",
    ),
    Bound(
        *("mask_high", 0.75, "mask_mean", 0.876543, "saturated_mask", "dead"),
        "saturated mask: mean 0.8765 is over 0.75",
    ),
    Bound(
        *("perturbation_low", 0.5, "perturbation_mean", 0.01234, "vanished_perturbation", "dead"),
        "vanished perturbation: mean 0.0123 is under 0.5",
    ),
    Bound(
        *("places_low", 0.125, "places", 0.0123, "one_place", "dead"),
        "only one place is covered: the spread of places is 0.0123, under 0.125",
    ),
    Bound(
        *("shift_high", 1.5, "shift", 1.612345, "generator_wins", "wins"),
        "generator wins: shift 1.612 is over 1.5",
    ),
]


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda b: b.name)
@pytest.mark.parametrize("policy", ["log", "rollback", "stop"])
def test_a_state_beyond_its_bound(bound: Bound, policy: str) -> None:
    settings: dict[str, Any] = {bound.name: bound.bound, bound.policy: policy}
    watch = sparring_watch(**settings)
    assert watch.inspect(1, {bound.metric: bound.bound}) == []  # not yet beyond
    assert watch.inspect(1, {bound.metric: bound.beyond}) == [
        Anomaly(bound.kind, policy, bound.message, bound.beyond)  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("policy", ["log", "rollback", "stop"])
@pytest.mark.parametrize(
    ("low", "cosine", "bound"), [(0.5, 0.5, 0.25), (0.25, 0.0, 0.25), (0.125, -1.0, 0.25)]
)
def test_a_dead_generator(low: float, cosine: float, bound: float, policy: str) -> None:
    """Its shift is under a share of the mean distance between faces, 1 − cosine."""
    watch = sparring_watch(shift_low=low, dead=policy)
    assert watch.inspect(1, {"shift": bound, "embedding_cosine": cosine, "fooled": 0.5}) == []
    message = (
        f"dead generator: shift 0.123 is under {bound:.3g}, {low:g} of the mean distance between faces "
        "(fooled 0.12)"
    )
    assert watch.inspect(1, {"shift": 0.12345, "embedding_cosine": cosine, "fooled": 0.12345}) == [
        Anomaly("dead_generator", policy, message, 0.12345)  # type: ignore[arg-type]
    ]


def test_a_state_without_its_metric_is_not_judged() -> None:
    watch = Watch(WatchConfig())
    assert watch.inspect(1, {"accuracy": 0.5}) == []
    assert watch.counts == {}


@pytest.mark.parametrize("policy", ["log", "skip", "rollback", "stop"])
@pytest.mark.parametrize(
    "metric", ["loss", "embedding_cosine", "mask_mean", "perturbation_mean", "shift", "fooled"]
)
def test_a_metric_that_is_not_finite(metric: str, policy: str) -> None:
    watch = Watch(WatchConfig(non_finite=policy))  # type: ignore[arg-type]
    assert Anomaly("non_finite", policy, f"{metric} is -inf", -math.inf) in watch.inspect(  # type: ignore[arg-type]
        1, {metric: -math.inf}
    )
    (found,) = watch.inspect(2, {metric: math.nan})
    assert (found.kind, found.policy, found.message) == ("non_finite", policy, f"{metric} is nan")


def test_several_metrics_that_are_not_finite_are_one_anomaly() -> None:
    watch = Watch(WatchConfig())
    (found,) = watch.inspect(1, {"loss": math.nan, "shift": math.nan, "skipped": 3})
    assert found.message == "loss is nan"
    assert watch.counts == {"non_finite": 1}


def test_one_dropped_update_is_reported() -> None:
    watch = Watch(WatchConfig(non_finite="rollback"))
    message = "updates were skipped because of non-finite gradients (skipped 1)"
    assert watch.inspect(1, {"loss": 1.0, "skipped": 1}, 8) == [Anomaly("non_finite", "rollback", message, 1)]
    assert watch.inspect(1, {"loss": 1.0, "skipped": 0}, 8) == []


def running_mean(losses: list[float], factor: float) -> float:
    """The mean of up to 20 losses, then moving by a 20th; spikes count as their bound."""
    mean = 0.0
    for number, loss in enumerate(losses, 1):
        taken = min(loss, factor * mean) if number > 5 else loss
        mean += (taken - mean) / min(number, 20)
    return mean


@pytest.mark.parametrize("factor", [2.0, 10.0])
@pytest.mark.parametrize("policy", ["log", "rollback", "stop"])
def test_a_spike_is_a_loss_above_so_many_times_its_running_mean(factor: float, policy: str) -> None:
    watch = Watch(WatchConfig(loss_spike_factor=factor, loss_spike=policy))  # type: ignore[arg-type]
    seen: list[float] = []
    spikes = 0
    for loss in np.random.default_rng(0).pareto(1.0, 200).tolist():
        bound = factor * running_mean(seen, factor) if len(seen) >= 5 else math.inf
        found = watch.inspect(len(seen), {"loss": loss})
        seen.append(loss)
        assert [f.kind for f in found] == ["loss_spike"] * (loss > bound)
        spikes += len(found)
        for anomaly in found:
            message = f"loss {loss:.4g} is over {factor:g} times its mean {bound / factor:.4g}"
            assert (anomaly.policy, anomaly.message, anomaly.value) == (policy, message, loss)
    assert 2 < spikes < 100


def test_a_loss_at_the_bound_is_no_spike() -> None:
    watch = Watch(WatchConfig(loss_spike_factor=4))
    losses = [1.0] * 5 + [4.0]
    assert [watch.inspect(0, {"loss": loss}) for loss in losses] == [[]] * 6


def test_losses_about_zero_have_no_spikes() -> None:
    """A mean of zero or below says nothing about how large a loss may be."""
    watch = Watch(WatchConfig())
    for loss in [0.0] * 6 + [5.0] + [-8.0] * 8 + [100.0]:
        assert watch.inspect(0, {"loss": loss}) == []


def test_small_losses_have_spikes_too() -> None:
    watch = Watch(WatchConfig())
    found = [watch.inspect(0, {"loss": loss}) for loss in [0.01] * 6 + [0.5]]
    assert [len(anomalies) for anomalies in found] == [0] * 6 + [1]


@pytest.mark.parametrize(("before", "reports"), [(4, 0), (5, 1)])
def test_a_spike_needs_five_losses_before_it(before: int, reports: int) -> None:
    watch = Watch(WatchConfig())
    for _ in range(before):
        watch.inspect(0, {"loss": 1.0})
    assert len(watch.inspect(0, {"loss": 1000.0})) == reports


def skip(watch: Watch, skipped: list[int], updates: int) -> list[Anomaly]:
    """What is said of intervals with so many dropped updates, besides that there were some."""
    found = [a for s in skipped for a in watch.inspect(0, {"loss": 1.0, "skipped": s}, updates)]
    return [anomaly for anomaly in found if anomaly.kind != "non_finite"]


def test_twenty_intervals_without_an_update_stop() -> None:
    watch = Watch(WatchConfig(non_finite="skip"))
    assert skip(watch, [4] * 19, 4) == []
    message = (
        "all updates of the last 20 intervals had non-finite gradients; "
        "lower optimizer.learning_rate or change training.precision"
    )
    assert skip(watch, [4], 4) == [Anomaly("nothing_learned", "stop", message, 4)]


def test_an_interval_of_one_update() -> None:
    watch = Watch(WatchConfig())
    kinds = [[a.kind for a in watch.inspect(0, {"skipped": 1})] for _ in range(20)]
    assert kinds == [["non_finite"]] * 19 + [["non_finite", "nothing_learned"]]


def test_one_applied_update_counts_again_from_the_start() -> None:
    watch = Watch(WatchConfig(non_finite="skip"))
    assert skip(watch, [4] * 19 + [3] + [4] * 19, 4) == []
    assert len(skip(watch, [4], 4)) == 1
    assert skip(Watch(WatchConfig()), [0] * 30, 4) == []
