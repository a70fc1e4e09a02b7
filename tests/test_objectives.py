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


def test_generator_terms_by_formula() -> None:
    a, b = unit(4, seed=1), unit(4, seed=2)
    cosines = [
        sum(x * y for x, y in zip(p, q, strict=True)) for p, q in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert float(objectives.untargeted(a, b)) == pytest.approx(sum(cosines) / 4)
    valid = torch.tensor([True, False, True, True])
    squares = [distance(p, q) for p, q in zip(a, b, strict=True)]
    expected = (squares[0] + squares[2] + squares[3]) / 4
    assert float(objectives.targeted(a, b, valid)) == pytest.approx(expected)
    x, y = torch.rand(2, 4, 3, 5, 6, dtype=torch.float64)
    errors = [float(((x[i] - y[i]) ** 2).sum() / 90) for i in range(4)]
    assert float(objectives.image(x, y, valid)) == pytest.approx((errors[0] + errors[2] + errors[3]) / 4)


def test_sources_and_targets_are_fixed() -> None:
    a, b = unit(4, seed=1).requires_grad_(), unit(4, seed=2).requires_grad_()
    objectives.untargeted(a, b).backward()
    assert a.grad is None and b.grad is not None
    objectives.targeted(b, a, torch.ones(4)).backward()
    assert a.grad is None


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
