"""Dropout keyed by position: shares, scale, and the same masks however faces are divided over processes."""

from __future__ import annotations

import pytest
import torch

from sparface.errors import UserError
from sparface.models.dropout import Dropout, dropping
from sparface.models.recognizer import RecognizerConfig, build_recognizer

POSITIONS = torch.arange(1000, 1064)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_is_dropped_and_the_mean_is_kept(p: float) -> None:
    network, x = Dropout(2000, p), torch.ones(64, 2000)
    with dropping(network, 3, POSITIONS):
        found = network(x)
    assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1.0) / (1 - p))}
    # five deviations of a mean of 128,000 draws
    assert abs(float((found == 0).float().mean()) - p) < 5 * (p * (1 - p) / 128_000) ** 0.5
    for rows, columns in ((found[0], found[1]), (found[:, 0], found[:, 1])):
        assert not torch.equal(rows, columns)


def test_masks_depend_on_seed_and_position_alone() -> None:
    network, x = Dropout(50, 0.5), torch.rand(64, 50)

    def masked(seed: int, part: slice) -> torch.Tensor:
        with dropping(network, seed, POSITIONS[part]):
            return network(x[part])  # type: ignore[no-any-return]

    everything = masked(3, slice(None))
    assert torch.equal(torch.cat([masked(3, slice(0, 16)), masked(3, slice(16, 64))]), everything)
    assert not torch.equal(masked(4, slice(None)), everything)


@pytest.mark.parametrize("backbone, embedding", [("small", 16), ("inception_resnet_v1", 512)])
def test_only_training_steps_drop(backbone: str, embedding: int) -> None:
    torch.manual_seed(0)
    recognizer = build_recognizer(RecognizerConfig(backbone, embedding, dropout=0.5))
    x, dropped = torch.rand(4, 3, 80, 80), []
    for module in recognizer.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda _, given, out: dropped.append(not torch.equal(given[0], out)))
    recognizer(x)
    with dropping(recognizer, 0, POSITIONS[:4]):
        recognizer(x)
        recognizer.eval()(x)
    recognizer.train()(x)
    assert dropped == [False, True, False, False]


def test_timm_has_none() -> None:
    with pytest.raises(
        UserError, match=r"recognizer\.dropout: 0\.5 is not allowed; must be 0 for timm:resnet18"
    ):
        build_recognizer(RecognizerConfig("timm:resnet18", dropout=0.5))
