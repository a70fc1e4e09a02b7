"""Drawn sunglasses and scarves are where people wear them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparface.faces.templates import arcface_template
from sparface.variation.wear import Garment, wear

POSITIONS = torch.arange(500, 900)
SIZE = 64
GARMENTS: tuple[Garment, ...] = ("sunglasses", "scarf")


def how_often(garment: Garment) -> Tensor:
    """The share of positions at which each pixel [H,W] of a face changes."""
    faces = torch.rand(len(POSITIONS), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return ((wear(faces, garment, 3, POSITIONS) - faces).abs().amax(1) > 0.005).float().mean(0)


def at_landmarks(changed: Tensor) -> list[float]:
    """Its values at the eyes, the tip of the nose and the corners of the mouth of ArcFace's template."""
    return [float(changed[round(y), round(x)]) for x, y in arcface_template(SIZE)]


def test_sunglasses_cover_both_eyes_and_never_the_mouth() -> None:
    left, right, nose, *mouth = at_landmarks(how_often("sunglasses"))
    assert left > 0.85 and right > 0.85
    assert nose < 0.35 and mouth == [0, 0]


def test_a_scarf_covers_the_mouth_and_hardly_ever_the_eyes() -> None:
    left, right, _, *mouth = at_landmarks(how_often("scarf"))
    assert left < 0.02 and right < 0.02
    assert min(mouth) > 0.8


@pytest.mark.parametrize("garment", GARMENTS)
def test_what_is_worn_depends_on_seed_and_position_alone(garment: Garment) -> None:
    faces, positions = torch.rand(8, 3, 48, 40), POSITIONS[:8]
    whole = wear(faces, garment, 3, positions)
    parts = [wear(faces[part], garment, 3, positions[part]) for part in (slice(0, 3), slice(3, 8))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(wear(faces, garment, 4, positions), whole)
    assert bool(((whole >= 0) & (whole <= 1)).all())
    untouched = (whole == faces).all(1).flatten(1).float().mean(1)
    assert float(untouched.min()) > 0.2
