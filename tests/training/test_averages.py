"""The weight average by its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from sparface.training.averages import WeightAverage


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
        average.update(images)
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
    average.update(30)
    for name, value in live.state_dict().items():
        torch.testing.assert_close(average.tensors["net"][name], value)


def test_applied_lends_the_average_and_gives_the_live_weights_back() -> None:
    live = network()
    average = WeightAverage({"net": live}, half_life=100)
    changed(live)
    average.update(50)
    before = {name: value.clone() for name, value in live.state_dict().items()}
    with pytest.raises(ZeroDivisionError), average.applied("net"):
        for name, value in live.state_dict().items():
            assert torch.equal(value, average.tensors["net"][name])
        raise ZeroDivisionError
    for name, value in live.state_dict().items():
        assert torch.equal(value, before[name])
