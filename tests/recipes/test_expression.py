"""A step of the recipe `expression` against plain torch: with examples made before, in the step, for free."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from small import batch, config, difference, recipe, step
from torch import Tensor, nn

from sparface.errors import UserError
from sparface.recipes import Recipe, registry
from sparface.recipes.expression import ExpressionRecipe
from sparface.training.strategies.base import Strategy
from sparface.variation import vary

pytestmark = pytest.mark.usefixtures("float64")
EPSILON = 0.03


def network_of(made: Recipe) -> nn.Module:
    return copy.deepcopy(made.networks["classifier"])


def varied() -> Tensor:
    faces = batch()
    return vary(faces.images / 255, "classic", 3, faces.positions)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {f"classifier.{k}": p.grad.clone() for k, p in network.named_parameters()}


def signed(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The sign of the gradient at faces, as the network is used after training."""
    x = x.clone().requires_grad_()
    F.cross_entropy(copy.deepcopy(network).eval()(x), labels).backward()
    assert x.grad is not None
    return x.grad.sign()


@pytest.mark.parametrize("training", ["none", "stored"])
def test_a_plain_step_is_cross_entropy(training: str) -> None:
    settings = config("expression", training=training)
    settings.data.mix = {"made": 2}
    made = recipe(settings)
    network, faces = network_of(made), batch()
    found, metrics, _ = step(made, faces)
    logits = network(varied())
    loss = F.cross_entropy(logits, faces.labels)
    loss.backward()
    assert difference(gradients(network), found) < 1e-9
    assert metrics["loss"] == pytest.approx(float(loss.detach()))
    right = sum(int(row.argmax()) == label for row, label in zip(logits, faces.labels.tolist(), strict=True))
    assert float(metrics["accuracy"]) == pytest.approx(right / 8)


def test_on_the_fly_trains_on_each_face_and_its_example() -> None:
    made = recipe(config("expression", training="on_the_fly", epsilon=EPSILON))
    network, faces, x = network_of(made), batch(), varied()
    moved = (x + EPSILON * signed(network, x, faces.labels)).clamp(0, 1)
    found, metrics, buffers = step(made, faces)
    logits = network(torch.cat([x, moved]))
    loss = (F.cross_entropy(logits[:8], faces.labels) + F.cross_entropy(logits[8:], faces.labels)) / 2
    loss.backward()
    assert difference(gradients(network), found) < 1e-9
    right = logits.argmax(1).view(2, 8) == faces.labels
    assert float(metrics["accuracy"]) == pytest.approx(float(right[0].double().mean()))
    assert float(metrics["adversarial_accuracy"]) == pytest.approx(float(right[1].double().mean()))
    own = {f"classifier.{k}": b for k, b in network.named_buffers()}
    assert difference(own, buffers) < 1e-9, "making the examples changes no running statistics"
    assert made.networks["classifier"].training


def test_free_moves_the_faces_by_the_gradients_of_the_updates() -> None:
    """Shafahi et al. 2019, algorithm 1, with a perturbation of 0 for each new batch."""
    made = recipe(config("expression", training="free", epsilon=EPSILON, replays=3))
    network, faces, x = network_of(made), batch(), varied()
    optimizers = [torch.optim.SGD(n.parameters(), 0.1) for n in (network, made.networks["classifier"])]
    change = torch.zeros_like(x)
    phases = made.phases()
    assert len(phases) == 3
    for phase in phases:
        for optimizer in optimizers:
            optimizer.zero_grad()
        moved = (x + change).clamp(0, 1).requires_grad_()
        loss = F.cross_entropy(network(moved), faces.labels)
        loss.backward()
        assert moved.grad is not None
        change = (moved.detach() - x + EPSILON * moved.grad.sign()).clamp(-EPSILON, EPSILON)
        found, metrics = phase.loss(faces)
        found.backward()
        assert float(found.detach()) == pytest.approx(float(loss.detach()), rel=1e-9)
        assert float(metrics["loss"]) == pytest.approx(float(loss.detach()) / 3)
        assert difference(gradients(network), gradients(made.networks["classifier"])) < 1e-9
        for optimizer in optimizers:
            optimizer.step()
    assert "adversarial_accuracy" in metrics and change.abs().max() <= EPSILON + 1e-12


def test_the_gradient_norm_is_the_mean_over_the_replays() -> None:
    norms = []
    for training in ("none", "free"):
        settings = config("expression", training=training, epsilon=0.0, replays=3)
        strategy = Strategy(settings, torch.device("cpu"))
        strategy.prepare(recipe(settings))
        norms.append(float(strategy.update([batch()], rate=0.0)["classifier/gradient_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_replays_of_several_batches_in_one_update_are_kept_apart() -> None:
    made = recipe(config("expression", training="free", epsilon=EPSILON, replays=2))
    alone = recipe(config("expression", training="free", epsilon=EPSILON, replays=2))
    parts = [batch().part(rank, 2) for rank in range(2)]
    for phase in made.phases():
        together = [phase.loss(part)[0] for part in parts]
        for loss in together:
            loss.backward()
    for part, loss in zip(parts, together, strict=True):
        for phase in alone.phases():
            one = phase.loss(part)[0]
            one.backward()
        assert torch.equal(one, loss)


def test_settings_that_do_not_go_together_are_named() -> None:
    stored, free, onnx = (config("expression", training=kind) for kind in ("stored", "free", "none"))
    free.training.strategy, onnx.training.start_from = "deepspeed", "a.onnx"
    for settings, message in (
        (stored, "data.mix: is empty; give the set of adversarial examples"),
        (free, "free is not supported with deepspeed"),
        (onnx, "training.start_from: an ONNX file is for a recognizer"),
    ):
        with pytest.raises(UserError, match=message):
            recipe(settings)


def test_the_preview_shows_the_examples() -> None:
    shown = recipe(config("expression", training="on_the_fly", epsilon=EPSILON)).preview(batch())
    change = (shown["adversarial"] - shown["face"]).abs()
    assert 0.9 * EPSILON < change.max() <= EPSILON + 1e-12
    assert {*ExpressionRecipe.pictures} >= {*shown}
    assert registry.find("expression") is ExpressionRecipe
