"""A step of the recognizer recipe against plain formulas: gradients and metrics, setting by setting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import formulas
import pytest
import torch
from small import IDENTITIES, batch, config, difference, recipe, step
from torch import Tensor

from sparface.config import Config
from sparface.recipes import build_recipe
from sparface.recipes.base import viewable
from sparface.recipes.recognizer import ObjectiveConfig
from sparface.variation import vary

SETTINGS: list[dict[str, Any]] = [
    {"triplet": 0.3},
    {"margin": 0.6},
    {"mining": "batch_hard"},
    {"cross_entropy": 0.25},
    {"arcface": 1.5},
    {"arcface_margin": 0.2},
    {"arcface_scale": 8.0},
    {"scale": 8.0},
    {"label_smoothing": 0.2},
]
LEFT_OUT: list[dict[str, Any]] = [
    {"triplet": 0.0},
    {"cross_entropy": 0.0},
    {"arcface": 0.0},
    {"triplet": 0.0, "cross_entropy": 0.0},
    {"cross_entropy": 0.0, "arcface": 0.0},
]


pytestmark = pytest.mark.usefixtures("float64")


def settings(**objective: Any) -> Config:
    return config("recognizer", **objective)


def by_formula(config: Config) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients and metrics of a step."""
    faces, networks = batch(), recipe(config).networks
    head: Any = networks["head"].weight if "head" in networks else None
    x = faces.images / 255
    x = vary(x, config.data.variation, config.training.seed, faces.positions, config.data.variation_strength)
    embeddings = networks["recognizer"](formulas.whitened(x), whitened=True)
    loss, metrics = formulas.identity_loss(
        config.block(ObjectiveConfig), embeddings, embeddings, faces.labels.tolist(), head
    )
    named = {f"{n}.{k}": p for n, network in networks.items() for k, p in network.named_parameters()}
    gradients = torch.autograd.grad(loss, list(named.values()))
    collapse = formulas.mean_cosine_of_pairs(embeddings)
    return dict(zip(named, gradients, strict=True)), {
        **metrics,
        "loss": loss,
        "embedding_cosine": collapse,
    }


def assert_same_step(config: Config) -> None:
    expected, expected_metrics = by_formula(config)
    gradients, metrics, _ = step(recipe(config), batch())
    assert difference(expected, gradients) < 1e-9
    assert metrics.keys() == expected_metrics.keys()
    for name, value in metrics.items():
        assert float(value) == pytest.approx(float(expected_metrics[name].detach()), rel=1e-9), name


@pytest.mark.parametrize("objective", [{}, *SETTINGS, *LEFT_OUT], ids=str)
def test_a_step_is_the_formula(objective: dict[str, Any]) -> None:
    assert_same_step(settings(**objective))


@pytest.mark.parametrize("objective", [*SETTINGS, *LEFT_OUT[:3]], ids=str)
def test_each_setting_changes_the_step(objective: dict[str, Any]) -> None:
    gradients = [step(recipe(settings(**o)), batch())[0] for o in ({}, objective)]
    shared = gradients[0].keys() & gradients[1].keys()
    assert difference(*({k: g[k] for k in shared} for g in gradients)) > 0.01


def test_a_head_where_one_loss_over_identities_is_on() -> None:
    for objective in ({"cross_entropy": 0.0, "arcface": 1e-3}, {"cross_entropy": 1e-3, "arcface": 0.0}):
        made = build_recipe(settings(**objective), IDENTITIES)
        assert made.networks["head"].weight.shape == (IDENTITIES, 16)
        assert made.phases()[0].updates == ("recognizer", "head")


def test_a_loss_of_the_smallest_weight_counts() -> None:
    """A weight is never a switch at some value."""
    objective = ObjectiveConfig(triplet=1e-3, cross_entropy=1e-3, arcface=1e-3)
    assert_same_step(replace(settings(), blocks=settings().blocks | {"objective": objective}))


def test_faces_that_are_not_varied() -> None:
    """They reach the recognizer as bytes, which it whitens in float32."""
    torch.set_default_dtype(torch.float32)
    made = settings()
    made = replace(made, data=replace(made.data, variation="none"))
    assert difference(by_formula(made)[0], step(recipe(made), batch())[0]) < 1e-3


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_variation_and_its_strength(strength: float) -> None:
    made = settings()
    made = replace(made, data=replace(made.data, variation="strong", variation_strength=strength))
    assert_same_step(made)
    other = replace(made, data=replace(made.data, variation_strength=0.6))
    assert difference(by_formula(made)[0], by_formula(other)[0]) > 0.01


def test_a_preview_shows_three_deviations_around_grey() -> None:
    shown = recipe(settings()).preview(batch())
    assert shown.keys() == {"face", "whitened"}
    faces = vary(batch().images / 255, "classic", 3, batch().positions)
    torch.testing.assert_close(shown["face"], faces)
    torch.testing.assert_close(shown["whitened"], (formulas.whitened(faces) + 3) / 6)
    beyond = viewable(torch.tensor([-9.0, -3.0, 0.0, 1.5, 3.0, 9.0]))
    assert beyond.tolist() == [0, 0, 0.5, 0.75, 1, 1]


def test_variation_draws_from_the_seed() -> None:
    made = settings()
    other = replace(made, training=replace(made.training, seed=4))
    assert_same_step(other)
    assert difference(by_formula(made)[0], by_formula(other)[0]) > 0.01


def test_losses_are_not_rounded_under_autocast() -> None:
    """Only the networks compute in bf16: their embeddings are taken as they come."""
    torch.set_default_dtype(torch.float32)
    made = recipe(settings())
    seen: list[Tensor] = []
    made.networks["recognizer"].register_forward_hook(lambda *call: seen.append(call[-1].detach().double()))
    head = made.networks["head"].weight.detach().double()  # type: ignore[union-attr]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, metrics, _ = step(made, batch())
    (embeddings,) = seen
    loss, expected = formulas.identity_loss(
        settings().block(ObjectiveConfig), embeddings, embeddings, batch().labels.tolist(), head
    )
    expected |= {"loss": loss, "embedding_cosine": formulas.mean_cosine_of_pairs(embeddings)}
    for name, value in metrics.items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-6), name
