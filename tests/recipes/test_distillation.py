"""Distillation against plain formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import IDENTITIES, batch, config, recipe, step
from torch import Tensor

from small_onnx import write
from sparface.config import Config
from sparface.errors import UserError
from sparface.models.recognizer import RecognizerConfig
from sparface.recipes import Recipe, build_recipe
from sparface.recipes.base import faces
from sparface.recipes.distillation import Lesson, distillation_loss

pytestmark = pytest.mark.usefixtures("float64")
OFF: dict[str, Any] = {"triplet": 0.0, "cross_entropy": 0.0, "arcface": 0.0}


def settings(**objective: Any) -> Config:
    made = config("recognizer", **{**OFF, "distillation": 1.0, **objective})
    return replace(made, training=replace(made.training, start_from="weights.pt"))


def started(config: Config) -> Recipe:
    """The recipe as it begins from other weights than it was built with, and has learned a little since."""
    made = recipe(config)
    torch.manual_seed(1)
    made.begin(
        {"recognizer": build_recipe(config, IDENTITIES).networks["recognizer"].state_dict()}, "weights.pt"
    )
    with torch.no_grad():
        for weight in made.networks["recognizer"].parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    return made


def by_formula(made: Recipe, contrast: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its two terms, one face after the other."""
    given, teacher = batch(), made.frozen["teacher"]
    students = made.networks["recognizer"](faces(made.config, given))
    with torch.no_grad():
        teachers = teacher(given.images / 255)
    distances, contrasts = [], []
    for i, student in enumerate(students):
        distances.append(1 - F.cosine_similarity(student, teachers[i], dim=0))
        others = [j for j in range(len(teachers)) if j == i or given.labels[j] != given.labels[i]]
        logits = torch.stack([32 * (student @ teachers[j]) for j in others])
        contrasts.append(F.cross_entropy(logits[None], torch.tensor([others.index(i)])))
    distance, between = torch.stack(distances).mean(), torch.stack(contrasts).mean()
    return distance + contrast * between, distance, between


@pytest.mark.parametrize("objective", [{}, {"distillation": 0.3}, {"distillation_contrast": 0.7}], ids=str)
def test_a_step_is_the_formula(objective: dict[str, Any]) -> None:
    made = started(settings(**objective))
    weight = objective.get("distillation", 1.0)
    loss, distance, between = by_formula(made, objective.get("distillation_contrast", 0.2))
    parameters = dict(made.networks["recognizer"].named_parameters())
    expected = torch.autograd.grad(weight * loss, list(parameters.values()))
    gradients, metrics, _ = step(made, batch())
    assert float(metrics["loss"]) == pytest.approx(weight * float(loss), rel=1e-6)
    assert float(metrics["distillation"]) == pytest.approx(float(distance), rel=1e-6)
    assert float(metrics["distillation_contrast"]) == pytest.approx(float(between), rel=1e-6)
    for (name, _), gradient in zip(parameters.items(), expected, strict=True):
        torch.testing.assert_close(gradients[f"recognizer.{name}"], gradient, rtol=1e-6, atol=1e-9)


def test_it_adds_to_the_other_losses() -> None:
    alone, both = started(settings()), started(settings(triplet=1.0))
    (_, first, _), (_, second, _) = step(alone, batch()), step(both, batch())
    assert float(second["loss"]) == pytest.approx(float(first["loss"] + second["triplet"]), rel=1e-9)


def test_the_teacher_is_the_start_and_stays() -> None:
    made = started(settings())
    teacher = {key: value.clone() for key, value in made.frozen["teacher"].state_dict().items()}
    torch.manual_seed(1)
    start = build_recipe(settings(), IDENTITIES).networks["recognizer"].state_dict()
    assert all(torch.equal(teacher[key], value) for key, value in start.items())
    step(made, batch())
    assert all(torch.equal(teacher[k], v) for k, v in made.frozen["teacher"].state_dict().items())


def drawn(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_loss_is_the_same_on_any_number_of_processes() -> None:
    """Each process compares its own faces with the teacher's embeddings of all."""
    students, labels, positions = drawn(8, 0).requires_grad_(), torch.arange(8) // 2, torch.arange(8) + 50
    given = Lesson(drawn(8, 1), labels, positions)
    whole, _ = distillation_loss(given, students, labels, positions, 0.2)
    halves = [
        distillation_loss(given, students[part], labels[part], positions[part], 0.2)[0]
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)
    (gradient,), (expected,) = (
        torch.autograd.grad(loss, students) for loss in ((halves[0] + halves[1]) / 2, whole)
    )
    torch.testing.assert_close(gradient, expected)


def test_without_other_people_only_the_distance_counts() -> None:
    students, labels, positions = drawn(3, 0), torch.zeros(3, dtype=torch.int64), torch.arange(3)
    teachers = drawn(3, 1)
    loss, metrics = distillation_loss(Lesson(teachers, labels, positions), students, labels, positions, 0.2)
    assert float(metrics["distillation_contrast"]) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(loss, 1 - F.cosine_similarity(students, teachers).mean())


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is empty; give the recognizer for objective.distillation"):
        build_recipe(config("recognizer", distillation=1.0), IDENTITIES)
    with pytest.raises(UserError, match="set one above 0"):
        build_recipe(config("recognizer", **OFF), IDENTITIES)


@pytest.mark.parametrize("objective", [{}, {"distillation_contrast": 0.5, "triplet": 1.0}], ids=str)
def test_sparring_faces_are_taught_too(objective: dict[str, Any]) -> None:
    """Real and sparring faces are to be where the teacher puts the clean face."""
    made = config("sparring", **{**OFF, "distillation": 0.5, **objective})
    made.training.start_from = "weights.pt"
    spar = recipe(made)
    seen: list[Tensor] = []
    spar.networks["recognizer"].register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    _, metrics, _ = step(spar, batch())
    (students,), given = seen, batch()
    labels, positions = given.labels.repeat(2), given.positions.repeat(2)
    with torch.no_grad():
        teachers = spar.frozen["teacher"](given.images / 255)
    own = positions[:, None] == given.positions
    allowed = own | (labels[:, None] != given.labels)
    logits = torch.where(allowed, 32 * students @ teachers.T, -torch.inf)
    distance = (1 - (students * teachers.repeat(2, 1)).sum(1)).mean()
    between = F.cross_entropy(logits, torch.arange(8).repeat(2))
    assert float(metrics["distillation"]) == pytest.approx(float(distance), rel=1e-6)
    assert float(metrics["distillation_contrast"]) == pytest.approx(float(between), rel=1e-6)
    others = metrics["triplet"] + metrics["sparring_triplet"] * 0.7 if "triplet" in objective else 0.0
    whole = 0.5 * (distance + objective.get("distillation_contrast", 0.2) * between) + others
    assert float(metrics["loss"]) == pytest.approx(float(whole), rel=1e-6)


def test_sparring_with_an_onnx_recognizer(tmp_path: Path) -> None:
    """Its backbone takes centred faces, and the attack still reaches the generator."""
    torch.set_default_dtype(torch.float32)
    made = config("sparring", **{**OFF, "distillation": 1.0})
    made.blocks["recognizer"] = RecognizerConfig("onnx", 16)
    made.training.start_from = str(write(tmp_path / "a.onnx"))
    made.data.variation = "none"
    spar = recipe(made)
    seen: list[Tensor] = []
    spar.networks["recognizer"].backbone.register_forward_hook(lambda *call: seen.append(call[1][0].detach()))
    gradients, _, _ = step(spar, batch())
    real, sparring = seen[0].chunk(2)
    torch.testing.assert_close(real, 2 * (batch().images / 255) - 1)
    assert float(sparring.abs().max()) <= 1 and not torch.equal(real, sparring)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.any() for name, gradient in gradients.items() if name.startswith("generator."))
