"""Optimizers by the formulas of their papers, in numpy; every setting of `optimizer` changes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparface.config import OptimizerConfig
from sparface.training.optimizers import base_rate, build_optimizer, clip

Array = np.ndarray
START = np.array([1.5, -2.0, 0.25])
GRADIENTS = np.array([[0.3, -4.0, 1e-3], [0.1, 2.0, -2e-3], [-0.7, 1.0, 5e-3], [0.2, -0.5, 0.0]])


def adam(config: OptimizerConfig) -> Array:
    """Kingma & Ba 2015 with L2 regularisation; `adamw` decays apart from the gradient (Loshchilov)."""
    w, m, v = START.copy(), np.zeros(3), np.zeros(3)
    apart = config.name == "adamw"
    for t, gradient in enumerate(GRADIENTS, 1):
        g = gradient if apart else gradient + config.weight_decay * w
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g**2
        step = (m / (1 - config.beta1**t)) / (np.sqrt(v / (1 - config.beta2**t)) + 1e-8)
        w = w - config.learning_rate * (step + (config.weight_decay * w if apart else 0))
    return w


def sgd(config: OptimizerConfig) -> Array:
    """Heavy ball; the first gradient is taken whole."""
    w, m = START.copy(), np.zeros(3)
    for gradient in GRADIENTS:
        m = config.beta1 * m + gradient + config.weight_decay * w
        w = w - config.learning_rate * m
    return w


FORMULAS = {"adam": adam, "adamw": adam, "sgd": sgd}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"learning_rate": 0.02},
    {"beta1": 0.5},
    {"beta1": 0.0},
    {"beta2": 0.9},
    {"weight_decay": 0.3},
]


def descend(config: OptimizerConfig) -> Array:
    weights = torch.tensor(START, requires_grad=True)
    optimizer = build_optimizer(config, [weights])
    for gradient in GRADIENTS:
        weights.grad = torch.tensor(gradient)
        optimizer.step()
    return weights.detach().numpy()


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_follow_the_formula(name: str, settings: dict[str, Any]) -> None:
    plain = OptimizerConfig(name=name, learning_rate=0.1)  # type: ignore[arg-type]
    config = replace(plain, **settings)
    np.testing.assert_allclose(descend(config), FORMULAS[name](config), rtol=1e-9)
    unused = not settings or (name == "sgd" and "beta2" in settings)
    assert np.allclose(descend(config), descend(plain), rtol=1e-4) == unused


@pytest.mark.parametrize("own", [2e-3, 0.5, 0.0])
def test_the_generators_own_rate_is_the_generators_alone(own: float) -> None:
    config = OptimizerConfig(learning_rate=2e-3, generator_learning_rate=own)
    rates = [base_rate(config, network) for network in ("generator", "recognizer", "head")]
    assert rates == [own, 2e-3, 2e-3]


@pytest.mark.parametrize("limit", [0.0, 1.0, 4.0, 13.0, 20.0])
def test_gradients_are_scaled_down_to_the_norm(limit: float) -> None:
    """Of length 13 together: 3² + 4² + 12² = 13²."""
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    clip(gradients, torch.tensor(13.0), limit)
    length = float(torch.cat([g.flatten() for g in gradients]).norm())
    assert length == pytest.approx(min(13, limit) if limit else 13, rel=1e-5)
    assert [g.flatten().tolist() for g in gradients] == [
        pytest.approx([3 / 13 * length, 4 / 13 * length], rel=1e-5),
        pytest.approx([12 / 13 * length], rel=1e-5),
    ]


@pytest.mark.parametrize("length", [0.0, 1e-9, 5e-7])
def test_vanishing_gradients_are_left_alone(length: float) -> None:
    gradient = torch.tensor([length, 0.0])
    clip([gradient], torch.tensor(length), 1.0)
    assert torch.equal(gradient, torch.tensor([length, 0.0]))


def test_nothing_to_clip() -> None:
    clip([], torch.tensor(0.0), 1.0)
