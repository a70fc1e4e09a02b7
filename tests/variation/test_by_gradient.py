"""What a network may choose has the right gradient; and occluders cover what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sparface.variation import PARAMETERS, Occluders, apply, bounded, coverage, draw, occlude


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def occluders(**given: Tensor) -> Occluders:
    made = Occluders(
        centre=torch.tensor([[0.13, -0.21], [-0.4, 0.37]], dtype=torch.float64),
        size=torch.tensor([[0.61, 0.33], [0.45, 0.52]], dtype=torch.float64),
        angle=torch.tensor([0.3, -0.2], dtype=torch.float64),
        opacity=torch.tensor([1.0, 0.7], dtype=torch.float64),
        texture=rand(2, 1, 6, 7, seed=1),
    )
    return replace(made, **given)


def test_the_gradient_of_bounded_changes() -> None:
    faces, values = 0.1 + 0.6 * rand(2, 3, 5, 6), 2 * rand(2, PARAMETERS, seed=1) - 1
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: apply(faces, bounded(v)), values, fast_mode=True)
    assert (torch.autograd.grad(apply(faces, bounded(values)).sum(), values)[0] != 0).all()


def test_the_gradient_is_finite_at_black_and_white() -> None:
    faces = torch.zeros(1, 3, 8, 8)
    faces[..., 4:] = 1
    values = torch.zeros(1, PARAMETERS, requires_grad=True)
    apply(faces.requires_grad_(), bounded(values)).square().sum().backward()
    assert values.grad is not None and values.grad.isfinite().all()
    assert faces.grad is not None and faces.grad.isfinite().all()


@pytest.mark.parametrize("edge", [1.0, 3.0])
@pytest.mark.parametrize("name", ["centre", "size", "angle", "opacity", "texture"])
def test_the_gradient_of_occluders(name: str, edge: float) -> None:
    faces, value = rand(2, 1, 6, 7), getattr(occluders(), name).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: occlude(faces, occluders(**{name: v}), edge), value)


def test_a_patch_and_light_pass_gradients_to_the_face() -> None:
    faces, v = 0.1 + 0.6 * rand(2, 3, 5, 6), draw(1, torch.arange(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: apply(x, v), faces.requires_grad_(), fast_mode=True)


def by_points(made: Occluders, i: int, size: tuple[int, int], fine: int = 20) -> np.ndarray:
    """The share of fine × fine points of each pixel that lie in the rectangle."""
    y, x = np.meshgrid(*((np.arange(n * fine) + 0.5) / (n * fine) * 2 - 1 for n in size), indexing="ij")
    turn, (cx, cy), (width, height) = float(made.angle[i]), made.centre[i].tolist(), made.size[i].tolist()
    across = np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)
    along = -np.sin(turn) * (x - cx) + np.cos(turn) * (y - cy)
    inside = (np.abs(across) < width) & (np.abs(along) < height)
    return inside.reshape(size[0], fine, size[1], fine).mean((1, 3))


@pytest.mark.parametrize(("angle", "most"), [(0.0, 0.03), (0.3, 0.2)])
def test_a_rectangle_covers_its_pixels(angle: float, most: float) -> None:
    made = occluders(angle=torch.full((2,), angle, dtype=torch.float64))
    covered = coverage(made, (30, 30))
    for i in range(2):
        expected = float(made.opacity[i]) * by_points(made, i, (30, 30))
        difference = np.abs(covered[i, 0].numpy() - expected)
        assert difference.max() < most and difference.mean() < 0.005


def test_nothing_of_no_size_and_the_texture_where_covered() -> None:
    faces, texture = rand(2, 3, 12, 12), rand(2, 3, 12, 12, seed=3)
    nothing = occluders(size=torch.zeros(2, 2, dtype=torch.float64), texture=texture)
    assert torch.equal(occlude(faces, nothing), faces)
    whole = occluders(
        size=torch.full((2, 2), 3.0, dtype=torch.float64), texture=texture, opacity=torch.ones(2).double()
    )
    torch.testing.assert_close(occlude(faces, whole), texture)
    half = occlude(faces, replace(whole, opacity=torch.full((2,), 0.5).double()))
    torch.testing.assert_close(half, (faces + texture) / 2)


def test_a_wider_edge_has_a_gradient_at_more_pixels() -> None:
    made = occluders()
    between = []
    for edge in (1, 6):
        covered = coverage(made, (40, 40), edge)[1]
        between.append(int(((covered > 0) & (covered < 0.7)).sum()))
    assert between[1] > 3 * between[0]
