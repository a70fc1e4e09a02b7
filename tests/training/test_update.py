"""One update by its formula: rates, clipping, decay, accumulation and dropping, on networks of one number."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparface.config import Config, OptimizerConfig, TrainingConfig
from sparface.recipes import FaceBatch, Metrics, Phase, Recipe
from sparface.training.strategies.base import Strategy

START = {"recognizer": 2.0, "generator": -3.0}
SLOPES = {"recognizer": 1.0, "generator": 2.0}


@dataclass
class Numbers:
    """A batch whose mean is the gradient of the recognizer's weight, and half of the generator's."""

    images: Tensor
    labels: Tensor = field(default_factory=lambda: torch.zeros(8, dtype=torch.long))
    positions: Tensor = field(default_factory=lambda: torch.arange(8))


class Lines(Recipe):
    """Two networks y = weight · x, trained in phases of their own or in one."""

    def __init__(self, together: bool = False) -> None:
        super().__init__(Config(), 0)
        self.rates: dict[str, float] = {}
        for name, weight in START.items():
            self.networks[name] = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.networks[name].weight, weight)  # type: ignore[arg-type]
        self.together = together
        self.dtypes: set[torch.dtype] = set()

    def phases(self) -> list[Phase]:
        if self.together:
            return [Phase("all", tuple(self.networks), lambda batch: self.loss(batch, *self.networks))]
        return [Phase(name, (name,), lambda b, name=name: self.loss(b, name)) for name in self.networks]

    def loss(self, batch: FaceBatch, *names: str) -> tuple[Tensor, Metrics]:
        parts = []
        for name in names:
            y = self.networks[name](batch.images[:, None])
            self.dtypes.add(y.dtype)
            parts.append(SLOPES[name] * y.float().mean())
        return torch.stack(parts).sum(), {f"{names[0]}_mean": batch.images.mean()}

    def learning_rate(self, network: str) -> float:
        return self.rates[network]


def update(
    *means: float,
    rate: float = 1.0,
    generators: float | None = None,
    recipe: Lines | None = None,
    precision: str = "fp32",
    **optimizer: Any,
) -> tuple[dict[str, float], dict[str, float]]:
    """Weights after an update on batches of these means, and its metrics."""
    plain: dict[str, Any] = {"name": "sgd", "learning_rate": 0.1, "beta1": 0.0}
    settings = OptimizerConfig(**(plain | optimizer))
    config = Config(optimizer=settings, training=TrainingConfig(precision=precision))  # type: ignore[arg-type]
    strategy, recipe = Strategy(config, torch.device("cpu")), recipe or Lines()
    own = settings.learning_rate if generators is None else generators
    recipe.rates = {"recognizer": settings.learning_rate, "generator": own}
    strategy.prepare(recipe)
    batches = [Numbers(torch.tensor([mean - 1, mean + 1]).repeat(4)) for mean in means]
    metrics = strategy.update(batches, rate)
    weights = {name: float(network.weight.detach()) for name, network in recipe.networks.items()}  # type: ignore[operator,arg-type]
    return weights, {name: float(value) for name, value in metrics.items()}


def stepped(recognizer: float, generator: float) -> dict[str, Any]:
    """The weights after these gradients, each times its rate."""
    moved = {"recognizer": 2.0 - recognizer, "generator": -3.0 - generator}
    return {name: pytest.approx(value, rel=1e-6) for name, value in moved.items()}


@pytest.mark.parametrize("together", [False, True])
def test_a_step_is_rate_times_gradient(together: bool) -> None:
    weights, metrics = update(4.0, recipe=Lines(together))
    assert weights == stepped(0.1 * 4, 0.1 * 8)
    assert metrics["recognizer/gradient_norm"] == pytest.approx(4)
    assert metrics["generator/gradient_norm"] == pytest.approx(8)
    assert metrics["skipped"] == 0


def test_the_schedules_rate_multiplies_every_networks_own() -> None:
    assert update(4.0, rate=0.25)[0] == stepped(0.025 * 4, 0.025 * 8)
    assert update(4.0, rate=0.25, generators=0.5)[0] == stepped(0.025 * 4, 0.125 * 8)


def test_a_networks_own_rate() -> None:
    assert update(4.0, generators=0.5)[0] == stepped(0.1 * 4, 0.5 * 8)
    assert update(4.0, generators=0.0)[0] == stepped(0.1 * 4, 0)


def test_weight_decay_pulls_every_network() -> None:
    assert update(4.0, weight_decay=0.5)[0] == stepped(0.1 * (4 + 1), 0.1 * (8 - 1.5))


@pytest.mark.parametrize("together", [False, True])
def test_gradients_are_clipped_network_by_network(together: bool) -> None:
    weights, metrics = update(4.0, clip_norm=5.0, recipe=Lines(together))
    assert weights == stepped(0.1 * 4, 0.1 * 5)
    assert metrics["generator/gradient_norm"] == pytest.approx(8)  # as it was


def test_accumulated_batches_are_averaged() -> None:
    weights, metrics = update(4.0, 1.0, -2.0)
    assert weights == stepped(0.1 * 1, 0.1 * 2)
    assert metrics["recognizer_mean"] == pytest.approx(1)
    assert metrics["recognizer/gradient_norm"] == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_update_that_is_not_finite_is_dropped_as_a_whole(bad: float, name: str) -> None:
    weights, metrics = update(4.0, bad, recipe=Lines(together=True), name=name, weight_decay=0.5, beta1=0.9)
    assert weights == START
    assert metrics["skipped"] == 1


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_takes_the_same_step(precision: str, dtype: torch.dtype) -> None:
    """fp16's gradients are scaled on their way, and clipped as they are."""
    recipe = Lines()
    weights, metrics = update(0.125, clip_norm=0.2, precision=precision, recipe=recipe)
    assert weights == stepped(0.1 * 0.125, 0.1 * 0.2)
    assert metrics["generator/gradient_norm"] == pytest.approx(0.25)
    assert recipe.dtypes == {dtype}
