"""The watch: each anomaly from a training that shows it, and silence otherwise."""

from __future__ import annotations

import json
import math

import pytest
import torch
from sparring_watch import sparring_watch
from torch import nn

from sparface.config import WatchConfig
from sparface.errors import UserError
from sparface.training.watch import Anomaly, Watch, validate_networks

HEALTHY = {
    "loss": 2.0,
    "skipped": 0.0,
    "embedding_cosine": 0.3,
    "mask_mean": 0.4,
    "perturbation_mean": 0.02,
    "shift": 0.2,
    "fooled": 0.3,
}


def watch_losses(losses: list[float], watch: Watch | None = None) -> list[Anomaly]:
    watch = watch or Watch(WatchConfig())
    return [found for images, loss in enumerate(losses) for found in watch.inspect(images, {"loss": loss})]


def test_a_healthy_training_is_silent() -> None:
    watch = sparring_watch()
    for images in range(50):
        assert watch.inspect(images, HEALTHY | {"loss": 8.0 * 0.9**images}) == []
    assert watch.inspect(99, {}) == []
    assert watch.counts == {}


@pytest.mark.parametrize(
    ("metric", "value", "kind", "policy"),
    [
        ("loss", math.nan, "non_finite", "skip"),
        ("loss", math.inf, "non_finite", "skip"),
        ("embedding_cosine", math.nan, "non_finite", "skip"),
        ("skipped", 3.0, "non_finite", "skip"),
        ("embedding_cosine", 0.97, "collapse", "rollback"),
        ("mask_mean", 0.001, "dead_mask", "log"),
        ("mask_mean", 0.999, "saturated_mask", "log"),
        ("perturbation_mean", 1e-5, "vanished_perturbation", "log"),
        ("shift", math.nan, "non_finite", "skip"),
        ("shift", 0.03, "dead_generator", "log"),
        ("shift", 1.4, "generator_wins", "stop"),
    ],
)
def test_names_what_is_wrong(metric: str, value: float, kind: str, policy: str) -> None:
    watch = sparring_watch(collapse="rollback", wins="stop")
    (found,) = watch.inspect(1, HEALTHY | {metric: value})
    assert (found.kind, found.policy) == (kind, policy)
    assert found.value == value or math.isnan(value)
    assert watch.counts == {kind: 1}


def test_a_generator_is_dead_when_faces_move_less_than_a_share_of_their_distance() -> None:
    """Young embeddings are close together: then a small shift is a large one."""
    for cosine, shift, dies in (
        (0.3, 0.03, True), (0.3, 0.04, False), (0.94, 0.0025, True), (0.94, 0.004, False),
    ):  # fmt: skip
        found = sparring_watch().inspect(1, HEALTHY | {"embedding_cosine": cosine, "shift": shift})
        assert [anomaly.kind for anomaly in found] == ["dead_generator"] * dies
    dead = HEALTHY | {"shift": 0.0003, "fooled": 0.0}
    (one,) = sparring_watch(shift_low=0.1).inspect(1, dead)
    assert one.message == (
        "dead generator: shift 0.0003 is under 0.07, 0.1 of the mean distance between faces (fooled 0)"
    )


def test_a_loss_spike_stands_out_of_the_running_mean() -> None:
    assert watch_losses([1.0] * 10 + [9.0] + [1.0] * 10) == []
    (found,) = watch_losses([1.0] * 10 + [11.0] + [1.0] * 10)
    assert found.kind == "loss_spike"
    assert found.message == "loss 11 is over 10 times its mean 1"


def test_the_first_losses_and_negative_ones_are_no_spikes() -> None:
    assert watch_losses([0.01, 5.0, 90.0]) == []
    assert watch_losses([-1.0] * 10 + [5.0]) == []


def test_a_new_level_of_the_loss_is_reported_until_it_is_the_mean() -> None:
    reports = watch_losses([1.0] * 20 + [50.0] * 40)
    assert 1 < len(reports) < 15


def test_a_loss_that_is_not_finite_leaves_the_mean_alone() -> None:
    watch = Watch(WatchConfig())
    watch_losses([1.0] * 10 + [math.nan, math.inf], watch)
    assert [found.kind for found in watch_losses([11.0], watch)] == ["loss_spike"]


def test_a_lasting_state_is_reported_when_it_begins_and_counted_each_time() -> None:
    watch = sparring_watch()
    collapsed = HEALTHY | {"embedding_cosine": 0.99}
    reports = [len(watch.inspect(i, m)) for i, m in enumerate([collapsed, collapsed, HEALTHY, collapsed])]
    assert reports == [1, 0, 0, 1]
    assert watch.counts == {"collapse": 3}


def test_a_restored_watch_goes_on_the_same() -> None:
    one, other = sparring_watch(), sparring_watch()
    watch_losses([1.0, 1.1, 0.9, 30.0, 1.0, 1.2, 40.0], one)
    one.inspect(1, HEALTHY | {"shift": 2.0})
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.counts == one.counts
    for metrics in ({"loss": 14.0, "shift": 2.0}, {"loss": 50.0, "shift": 0.5}, {"loss": 1.0, "shift": 2.0}):
        assert one.inspect(2, metrics) == other.inspect(2, metrics)
    assert one.state_dict() == other.state_dict()


def test_validation_counts_parameters() -> None:
    networks: dict[str, nn.Module] = {"recognizer": nn.Linear(3, 4), "head": nn.BatchNorm1d(5)}
    assert validate_networks(networks) == {"recognizer": 16, "head": 10}


def test_validation_names_network_and_parameter() -> None:
    norm = nn.BatchNorm1d(2)
    norm.weight.data[1] = torch.nan
    broken = nn.Sequential(nn.Linear(2, 2), norm)
    with pytest.raises(UserError, match=r"^recognizer\.1\.weight: has non-finite values"):
        validate_networks({"recognizer": broken})
    with pytest.raises(UserError, match=r"^head\.weight: has shape \[0, 4\]"):
        validate_networks({"head": nn.Linear(4, 0)})
    with pytest.raises(UserError, match="generator: has no parameters"):
        validate_networks({"generator": nn.ReLU()})
