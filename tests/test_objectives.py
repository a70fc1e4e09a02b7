"""Objectives against plain formulas in float64 and mining against loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparface import objectives


def unit(rows: int, size: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, size, dtype=torch.float64, generator=generator), dim=1)


def distance(a: Tensor, b: Tensor) -> float:
    return float(sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)))


def test_cross_entropy_and_arcface_by_formula() -> None:
    cosines = (unit(7, seed=1) @ unit(5, seed=2).T).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    plain, arc = [], []
    for row, label in zip(cosines.tolist(), labels.tolist(), strict=True):
        plain.append(-math.log(math.exp(32 * row[label]) / sum(math.exp(32 * c) for c in row)))
        theta = math.acos(row[label])
        moved = list(row)
        moved[label] = math.cos(theta + 0.5) if theta + 0.5 < math.pi else row[label] - 0.5 * math.sin(0.5)
        arc.append(-math.log(math.exp(32 * moved[label]) / sum(math.exp(32 * c) for c in moved)))
    assert float(objectives.cross_entropy(cosines.detach(), labels)) == pytest.approx(sum(plain) / 7)
    assert float(objectives.arcface(cosines.detach(), labels)) == pytest.approx(sum(arc) / 7)
    assert torch.autograd.gradcheck(lambda c: objectives.arcface(c, labels), cosines)


def test_arcface_is_finite_and_falls_with_the_angle_everywhere() -> None:
    angles = torch.linspace(0, math.pi, 201)
    cosines = torch.cos(angles)[:, None].requires_grad_()
    moved = objectives.arcface_cosines(cosines, torch.zeros(201, dtype=torch.long), 0.5)
    moved.sum().backward()
    assert cosines.grad is not None and cosines.grad.isfinite().all()
    assert (moved.diff(dim=0) < 1e-6).all()


def labelled() -> tuple[Tensor, Tensor, Tensor]:
    """Sparring faces, the real ones that they come from, and which of these are of the same identity."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    real = unit(6, seed=1)
    return F.normalize(real + 0.7 * unit(6, seed=2), dim=1), real, labels[:, None] == labels


def test_untargeted_by_formula() -> None:
    sparring, real, own = labelled()
    margins = []
    for i in range(6):
        cosines = [1 - distance(sparring[i], face) / 2 for face in real]
        near = [c for c, same in zip(cosines, own[i].tolist(), strict=True) if same]
        far = [c for c, same in zip(cosines, own[i].tolist(), strict=True) if not same]
        margins.append(sum(near) / len(near) - max(far))
    distances = [distance(real[i], real[j]) / 2 for i in range(6) for j in range(6) if i != j]
    expected = sum(margins) / 6 / (sum(distances) / 30)
    assert float(objectives.untargeted(sparring, real, own)) == pytest.approx(expected)
    sparring, real = sparring.requires_grad_(), real.clone().requires_grad_()
    objectives.untargeted(sparring, real, own).backward()
    assert sparring.grad is not None and real.grad is None


def test_untargeted_is_not_flat_where_nothing_has_moved() -> None:
    """The cosine to the source is: on the sphere its gradient at the source has no direction."""
    _, real, own = labelled()
    for faces in (real, F.normalize(torch.ones(6) + 0.1 * real, dim=1)):
        sparring = faces.clone().requires_grad_()
        objectives.untargeted(sparring, faces, own).backward()
        assert sparring.grad is not None
        along = (sparring.grad * faces).sum(1, keepdim=True) * faces
        assert (sparring.grad - along).norm(dim=1).min() > 0.05


def test_untargeted_does_not_depend_on_how_close_embeddings_are() -> None:
    """Regularisers weigh as much against a young recognizer, whose embeddings are nearly alike."""
    _, real, own = labelled()
    moved = F.normalize(real + 0.5 * unit(6, seed=3), dim=1)
    axis = torch.zeros(6, 1, dtype=torch.float64) + 1

    def squeezed(x: Tensor, size: float) -> Tensor:
        return F.normalize(torch.cat([axis, size * x], 1), dim=1)

    values = [
        float(objectives.untargeted(squeezed(moved, size), squeezed(real, size), own)) for size in (0.5, 0.1)
    ]
    assert values[0] == pytest.approx(values[1], rel=0.15)


def test_targeted_by_formula() -> None:
    a, directions = unit(4, seed=1), unit(5, seed=2)
    targets = torch.tensor([3, 0, 4, 4])
    squares = [distance(a[i], directions[t]) for i, t in enumerate(targets.tolist())]
    assert float(objectives.targeted(a @ directions.T, targets)) == pytest.approx(sum(squares) / 4)


def test_changed_decisions_are_those_of_the_nearest_other_face() -> None:
    def at(degrees: list[float]) -> Tensor:
        angles = torch.tensor(degrees).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], 1)

    real, labels = at([0, 10, 100, 110, 200, 130]), torch.tensor([0, 0, 1, 1, 2, 2])
    own, itself = labels[:, None] == labels, torch.eye(6, dtype=torch.bool)
    # 0, 1: fooled; 2: moved, still recognized; 3: untouched; 4, 5: were not recognized before
    sparring = at([90, 60, 80, 110, 200, 0])
    assert float(objectives.changed_decisions(real, sparring, real, own, itself)) == pytest.approx(2 / 6)
    assert float(objectives.changed_decisions(real, real, real, own, itself)) == 0


def test_mean_pairwise_cosine() -> None:
    e = unit(5)
    pairs = [float(e[i] @ e[j]) for i in range(5) for j in range(5) if i != j]
    assert float(objectives.mean_pairwise_cosine(e)) == pytest.approx(sum(pairs) / 20)
    assert float(objectives.mean_pairwise_cosine(e[:1].expand(6, -1))) == pytest.approx(1)


def test_reverse_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    y = objectives.reverse_gradient(x, 0.5)
    assert torch.equal(y, x)
    (y * torch.tensor([1.0, 2, 3])).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([-0.5, -1, -1.5]))
