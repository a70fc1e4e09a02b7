"""The classic variation: each piece by its formula, and what a recognizer sees of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparface.kernels.whiten import whiten
from sparface.randomness import uniform
from sparface.shards.set import ShardSet
from sparface.variation import classic, vary


@pytest.fixture
def people(faces: Path) -> Tensor:
    """Drawn faces [B,3,H,W] in [0,1]."""
    images = [torch.from_numpy(face.image.copy()) for face in ShardSet.open(faces).faces()]
    return torch.stack(images).permute(0, 3, 1, 2) / 255


def middle(columns: int, count: int = 1, **changed: float) -> Tensor:
    """Draws [count, columns] that change nothing, but for columns given as c0, c1, …"""
    draws = torch.full((count, columns), 0.5)
    for name, value in changed.items():
        draws[:, int(name[1:])] = value
    return draws


@pytest.mark.parametrize("size", [(32, 32), (25, 30)])
def test_keeps_faces_and_depends_on_position_only(size: tuple[int, int]) -> None:
    faces = torch.rand(16, 3, *size, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(100, 116)
    changed = classic.vary(faces, 5, positions)
    assert changed.shape == faces.shape
    assert changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(classic.vary(faces[4:9], 5, positions[4:9]), changed[4:9])
    per_face = (changed - faces).abs().mean((1, 2, 3))
    assert per_face.min() > 0.01
    assert not torch.equal(changed, classic.vary(faces, 6, positions))


def test_light_survives_whitening(people: Tensor) -> None:
    """Brightness and contrast would not: the correlation of whitened faces would stay 1."""
    draws = uniform(0, torch.arange(len(people)), 4)
    changed = classic.relight(people, draws, classic.GAMMA, classic.SLOPE, classic.SATURATION)
    correlation = (whiten(people) * whiten(changed)).mean((1, 2, 3))
    assert 0.9 < correlation.median() < 0.985
    assert correlation.min() > 0.5


def test_is_the_same_under_autocast(people: Tensor) -> None:
    positions = torch.arange(len(people))
    plain = classic.vary(people, 3, positions)
    exact = classic.vary(people.double(), 3, positions)  # autocast leaves float64 alone
    torch.testing.assert_close(plain.double(), exact, atol=1e-4, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(classic.vary(people, 3, positions), plain)


def test_half_of_the_faces_are_mirrored(people: Tensor) -> None:
    draws = middle(5, c0=0.2)
    mirrored = classic.warp(people[:1], draws, classic.ROTATION, classic.SHIFT, classic.SCALE)
    torch.testing.assert_close(mirrored, people[:1].flip(3), atol=1e-5, rtol=0)
    plain = classic.warp(people[:1], middle(5), classic.ROTATION, classic.SHIFT, classic.SCALE)
    torch.testing.assert_close(plain, people[:1], atol=1e-5, rtol=0)
    bar = torch.zeros(400, 3, 40, 40)
    bar[..., 30:] = 1
    changed = classic.vary(bar, 0, torch.arange(400)).mean(1)
    on_the_left = changed[..., :20].mean((1, 2)) > changed[..., 20:].mean((1, 2))
    assert 0.4 < on_the_left.double().mean() < 0.6


@pytest.mark.parametrize(
    ("column", "draw", "point", "lands"),
    [
        (1, 1.0, (0.5, 0.0), (0.5 * math.cos(0.3), 0.5 * math.sin(-0.3))),
        (2, 1.0, (0.5, 0.4), (0.5 / 1.2, 0.4 / 1.2)),
        (3, 1.0, (0.2, 0.0), (-0.2, 0.0)),
        (4, 0.0, (0.0, -0.2), (0.0, 0.2)),
    ],
)
def test_warp_by_formula(
    column: int, draw: float, point: tuple[float, float], lands: tuple[float, float]
) -> None:
    """A bright spot moves to where the formula says: rotation 0.3, scale 0.2, shift 0.2 of the side."""
    places = (torch.arange(81) + 0.5) / 81 * 2 - 1
    x, y = places[None, :], places[:, None]
    spot = torch.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / 0.01)[None, None].expand(1, 3, 81, 81)
    moved = classic.warp(spot, middle(5, 1, **{f"c{column}": draw}), 0.3, 0.2, 0.2)[0, 0]
    found = [float((moved * place).sum() / moved.sum()) for place in (x, y)]
    assert found == pytest.approx(lands, abs=0.005)


def test_light_by_formula() -> None:
    faces = torch.tensor([0.2, 0.4, 0.6])[None, :, None, None].expand(1, 3, 4, 5)
    light = (0.3, 0.2, 0.5)
    torch.testing.assert_close(classic.relight(faces, middle(4), *light), faces)
    gamma = classic.relight(faces, middle(4, c0=1.0), *light)
    torch.testing.assert_close(gamma, faces ** math.exp(0.3))
    colour = classic.relight(faces, middle(4, c1=0.0), *light)
    torch.testing.assert_close(colour, 0.4 + (faces - 0.4) * math.exp(-0.5))
    down = classic.relight(faces, middle(4, c2=1.0), *light)
    torch.testing.assert_close(down[..., 0, 0] / faces[..., 0, 0], torch.full((1, 3), math.exp(-0.2 * 0.75)))
    right = classic.relight(faces, middle(4, c3=0.0), *light)
    torch.testing.assert_close(right[..., 0, 4] / faces[..., 0, 4], torch.full((1, 3), math.exp(-0.2 * 0.8)))


def test_occlusion_by_formula() -> None:
    faces = torch.zeros(1, 3, 20, 40)
    draws = torch.tensor([[0.49, 0.0, 1.0, 0.5, 0.25, 0.7]])
    covered = classic.occlude(faces, draws, 0.5, (0.2, 0.5))
    expected = faces.clone()
    expected[..., 8:12, 0:20] = 0.7
    torch.testing.assert_close(covered, expected)
    assert torch.equal(classic.occlude(faces, draws, 0.49, (0.2, 0.5)), faces)


def test_the_stated_share_of_faces_has_a_patch() -> None:
    flat = torch.full((2000, 1, 8, 8), 0.5)
    draws = uniform(0, torch.arange(2000), 6)
    changed = classic.occlude(flat, draws, classic.OCCLUSION_SHARE, classic.OCCLUSION_SIDE)
    share = (changed != flat).flatten(1).any(1).double().mean()
    assert 0.25 < share < 0.33  # a patch at the very edge may cover no pixel's centre


def test_mirror_alone(people: Tensor) -> None:
    positions = torch.arange(400)
    faces = people[:1].expand(400, -1, -1, -1)
    changed = vary(faces, "mirror", 5, positions)
    mirrored = (changed == faces.flip(3)).flatten(1).all(1)
    assert torch.equal(changed[~mirrored], faces[~mirrored])
    assert 160 < int(mirrored.sum()) < 240
    assert torch.equal(vary(faces[7:9], "mirror", 5, positions[7:9]), changed[7:9])
