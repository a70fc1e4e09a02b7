"""Optimizers by the formulas of their papers, in numpy; every setting of `optimizer` changes them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparface.config import OptimizerConfig
from sparface.models.small import SmallResNet
from sparface.training.optimizers import (
    build_optimizer,
    changed_settings,
    clip,
    fresh_state,
    saved_groups,
)

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
    weights = torch.tensor(START[None], requires_grad=True)
    optimizer = build_optimizer(config, {"network": [weights]})
    for gradient in GRADIENTS:
        weights.grad = torch.tensor(gradient[None])
        optimizer.step()
    return weights.detach()[0].numpy()


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_follow_the_formula(name: str, settings: dict[str, Any]) -> None:
    plain = OptimizerConfig(name=name, learning_rate=0.1)  # type: ignore[arg-type]
    config = replace(plain, **settings)
    np.testing.assert_allclose(descend(config), FORMULAS[name](config), rtol=1e-9)
    unused = not settings or (name == "sgd" and "beta2" in settings)
    assert np.allclose(descend(config), descend(plain), rtol=1e-4) == unused


@pytest.mark.parametrize("name", FORMULAS)
def test_norms_biases_and_slopes_do_not_decay(name: str) -> None:
    """The steps are torch's with explicit groups, to the bit."""
    torch.manual_seed(0)
    network = SmallResNet(8)
    plain = copy.deepcopy(network)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    weights = [m.weight for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    others = [p for p in plain.parameters() if all(p is not weight for weight in weights)]
    assert len(others) > 20
    groups = [{"params": weights, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    judge = kinds[name](groups, lr=0.05, fused=True, **({"momentum": 0.9} if name == "sgd" else {}))
    config = OptimizerConfig(name=name, learning_rate=0.05, weight_decay=0.3)  # type: ignore[arg-type]
    optimizer = build_optimizer(config, {"network": network.parameters()})
    faces = torch.rand(4, 3, 32, 32)
    for _ in range(3):
        for one, its in ((network, optimizer), (plain, judge)):
            its.zero_grad()
            one(faces).square().sum().backward()
            its.step()
    assert all(map(torch.equal, network.parameters(), plain.parameters()))


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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fresh_state_is_what_torch_makes_but_zero(name: str, momentum: float, dtype: torch.dtype) -> None:
    weights = torch.ones(3, 2, dtype=dtype, requires_grad=True)
    optimizer = build_optimizer(OptimizerConfig(name=name, beta1=momentum), {"network": [weights]})  # type: ignore[arg-type]
    torch.set_default_dtype(dtype)
    try:
        fresh = fresh_state(optimizer, weights)
    finally:
        torch.set_default_dtype(torch.float32)
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    of_torch = {key: value for key, value in optimizer.state[weights].items() if value is not None}
    assert fresh.keys() == of_torch.keys()
    for key, value in fresh.items():
        assert (value.shape, value.dtype) == (of_torch[key].shape, of_torch[key].dtype)
        assert not value.any()


def test_fresh_state_is_where_the_parameter_is() -> None:
    weights = torch.ones(3, requires_grad=True)
    for name in FORMULAS:
        optimizer = build_optimizer(OptimizerConfig(name=name), {"network": [weights]})  # type: ignore[arg-type]
        fresh = fresh_state(optimizer, torch.ones(3, device="meta"))
        assert {value.device.type for value in fresh.values()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "settings", "changes"),
    [
        ("adam", {}, []),
        ("adam", {"learning_rate": 0.5}, []),
        ("adam", {"weight_decay": 0.1}, ["weight_decay was 0.0, is 0.1"]),
        ("adamw", {"beta2": 0.5}, ["betas was [0.9, 0.999], is [0.9, 0.5]"]),
        (
            "sgd",
            {"beta1": 0.5, "weight_decay": 0.1},
            ["momentum was 0.9, is 0.5", "weight_decay was 0.0, is 0.1"],
        ),
    ],
)
def test_settings_that_are_no_longer_the_saved_ones(
    name: str, settings: dict[str, Any], changes: list[str]
) -> None:
    plain = OptimizerConfig(name=name)  # type: ignore[arg-type]
    network = {"network": [torch.ones(1, requires_grad=True)]}
    saved = {"param_groups": saved_groups(build_optimizer(plain, network), ["weight"])}
    optimizer = build_optimizer(replace(plain, **settings), network)
    assert changed_settings(optimizer, saved) == changes
    as_json = {"param_groups": json.loads(json.dumps(saved["param_groups"]))}
    assert changed_settings(optimizer, as_json) == changes
    assert changed_settings(optimizer, {"param_groups": [{"params": []}]}) == []
