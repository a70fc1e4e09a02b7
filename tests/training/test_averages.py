"""The weight average by its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from sparface.training.averages import WeightAverage

LATE = 10**9
"""Images seen when the half-life has long stopped growing."""


def line(weight: float) -> nn.Linear:
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, weight)
    nn.init.constant_(network.bias, -weight)
    return network


def set_to(network: nn.Linear, weight: float) -> None:
    with torch.no_grad():
        network.weight.fill_(weight)
        network.bias.fill_(-weight)


def averaged(average: WeightAverage, name: str = "recognizer") -> tuple[float, float]:
    return float(average.tensors[name]["weight"]), float(average.tensors[name]["bias"])


@pytest.mark.parametrize("half_life", [8, 100, 5000])
@pytest.mark.parametrize("images", [1, 8, 64])
def test_half_of_the_way_in_a_half_life(half_life: int, images: int) -> None:
    """From 1 towards 5, whatever the size of the steps."""
    network = line(1)
    average = WeightAverage({"recognizer": network}, half_life)
    set_to(network, 5)
    for step in range(1, 11):
        average.update(images, LATE)
        expected = 5 - 4 * 0.5 ** (step * images / half_life)
        assert averaged(average) == pytest.approx((expected, -expected), rel=1e-5)


def test_weights_that_move_are_weighed_by_their_age() -> None:
    network = line(0)
    average = WeightAverage({"recognizer": network}, 10)
    seen = [3.0, -1.0, 2.0, 7.0]
    for weight in seen:
        set_to(network, weight)
        average.update(5, LATE)
    keep = 0.5**0.5
    expected = sum((1 - keep) * keep**age * weight for age, weight in enumerate(reversed(seen)))
    assert averaged(average)[0] == pytest.approx(expected, rel=1e-5)


def test_the_half_life_is_at_most_a_twentieth_of_what_was_seen() -> None:
    network = line(1)
    average = WeightAverage({"recognizer": network}, half_life=100)
    expected = 1.0
    for step, weight in enumerate([5.0, 2.0, 7.0, 3.0], 1):
        set_to(network, weight)
        average.update(50, images_seen=500 * step)
        kept = 0.5 ** (50 / min(100, 25 * step))
        expected = kept * expected + (1 - kept) * weight
        assert averaged(average) == pytest.approx((expected, -expected), rel=1e-5)


def test_every_network_has_its_own() -> None:
    networks = {"recognizer": line(1), "generator": line(2)}
    average = WeightAverage(networks, 10)
    set_to(networks["recognizer"], 3)
    average.update(10, LATE)
    assert averaged(average, "recognizer") == pytest.approx((2, -2))
    assert averaged(average, "generator") == pytest.approx((2, -2))
    set_to(networks["generator"], 4)
    average.update(10, LATE)
    assert averaged(average, "recognizer") == pytest.approx((2.5, -2.5))
    assert averaged(average, "generator") == pytest.approx((3, -3))


def test_a_network_has_its_average_for_a_while() -> None:
    networks = {"recognizer": line(1), "generator": line(2)}
    average = WeightAverage(networks, 10)
    for network in networks.values():
        set_to(network, 9)
    with average.applied("recognizer"):
        assert float(networks["recognizer"].weight.detach()) == 1
        assert float(networks["generator"].weight.detach()) == 9
    assert [float(n.weight.detach()) for n in networks.values()] == [9, 9]
    assert averaged(average) == (1, -1)


def test_a_failure_under_the_average_leaves_the_live_weights() -> None:
    network = line(1)
    average = WeightAverage({"recognizer": network}, 10)
    set_to(network, 9)
    with pytest.raises(RuntimeError), average.applied("recognizer"):
        raise RuntimeError
    assert float(network.weight.detach()) == 9


def test_averages_need_no_gradients() -> None:
    network = line(1)
    average = WeightAverage({"recognizer": network}, 10)
    average.update(5, LATE)
    assert not any(tensor.requires_grad for tensor in average.tensors["recognizer"].values())
    network(torch.ones(1, 1)).sum().backward()  # the live network still learns
    assert network.weight.grad is not None


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(spectral_norm(nn.Linear(3, 4)), nn.BatchNorm1d(4))


def changed(module: nn.Module) -> None:
    """As after a training step: all weights and all buffers are others."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    module(torch.randn(8, 3) * 5 + 2)


def test_weights_and_statistics_move_by_the_half_life_and_other_buffers_are_copied() -> None:
    live = network()
    average = WeightAverage({"net": live}, half_life=100)
    expected = {name: value.clone() for name, value in live.state_dict().items()}
    for images in (100, 25, 200):
        changed(live)
        average.update(images, LATE)
        kept = 0.5 ** (images / 100)
        for name, value in live.state_dict().items():
            moving = name.endswith(("original", "bias", "weight", "running_mean", "running_var"))
            expected[name] = kept * expected[name] + (1 - kept) * value if moving else value.clone()
    assert average.tensors["net"].keys() == live.state_dict().keys()
    for name, value in average.tensors["net"].items():
        torch.testing.assert_close(value, expected[name])
    copied = [name for name in expected if name.endswith(("_u", "_v", "num_batches_tracked"))]
    assert len(copied) == 3
    assert all(torch.equal(average.tensors["net"][n], live.state_dict()[n]) for n in copied)


def test_averages_of_weights_that_stand_still_are_the_weights() -> None:
    live = network().eval()
    average = WeightAverage({"net": live}, half_life=10)
    average.update(30, LATE)
    for name, value in live.state_dict().items():
        torch.testing.assert_close(average.tensors["net"][name], value)


def test_applied_lends_the_average_and_gives_the_live_weights_back() -> None:
    live = network()
    average = WeightAverage({"net": live}, half_life=100)
    changed(live)
    average.update(50, LATE)
    before = {name: value.clone() for name, value in live.state_dict().items()}
    with pytest.raises(ZeroDivisionError), average.applied("net"):
        for name, value in live.state_dict().items():
            assert torch.equal(value, average.tensors["net"][name])
        raise ZeroDivisionError
    for name, value in live.state_dict().items():
        assert torch.equal(value, before[name])
