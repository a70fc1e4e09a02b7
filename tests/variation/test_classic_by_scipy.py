"""The classic variation as a whole, against scipy's resampling and plain formulas, face by face."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from sparface.randomness import uniform
from sparface.variation import classic

Array = np.ndarray
STREAM = 1


def spread(draw: float, size: float) -> float:
    return size * (2 * draw - 1)


def by_scipy(face: Array, draws: list[float]) -> Array:
    """A face [3,H,W] changed by 15 draws in [0,1)."""
    mirror, turn, size, right, down, gamma, colour, slope_down, slope_right, patch, *box, grey = draws
    height, width = face.shape[1:]
    y, x = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in (height, width)), indexing="ij")

    scale, angle = 1 + spread(size, classic.SCALE), spread(turn, classic.ROTATION)
    flip = -1 if mirror < 0.5 else 1
    from_x = flip * scale * np.cos(angle) * x - scale * np.sin(angle) * y + 2 * spread(right, classic.SHIFT)
    from_y = flip * scale * np.sin(angle) * x + scale * np.cos(angle) * y + 2 * spread(down, classic.SHIFT)
    places = [((from_y + 1) * height - 1) / 2, ((from_x + 1) * width - 1) / 2]
    face = np.stack([map_coordinates(channel, places, order=1, mode="reflect") for channel in face])

    face = face ** np.exp(spread(gamma, classic.GAMMA))
    mean = face.mean(0)
    face = mean + np.exp(spread(colour, classic.SATURATION)) * (face - mean)
    light = np.exp(spread(slope_down, classic.SLOPE) * y + spread(slope_right, classic.SLOPE) * x)
    face = np.clip(face * light, 0, 1)

    if patch < classic.OCCLUSION_SHARE:
        low, high = classic.OCCLUSION_SIDE
        tall, wide = (low + (high - low) * draw for draw in box[:2])
        inside = (np.abs(y - spread(box[2], 1)) < tall) & (np.abs(x - spread(box[3], 1)) < wide)
        face = np.where(inside, grey, face)
    return face


@pytest.mark.parametrize("size", [(24, 24), (20, 31)])
def test_classic_is_what_scipy_makes(size: tuple[int, int]) -> None:
    faces = torch.rand(40, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(1000, 1040)
    draws = uniform(5, positions, 15, STREAM).tolist()
    expected = [by_scipy(face, row) for face, row in zip(faces.numpy(), draws, strict=True)]
    changed = classic.vary(faces, 5, positions)
    assert changed.dtype == torch.float64
    np.testing.assert_allclose(changed.numpy(), np.stack(expected), atol=1e-9)
    covered = sum(row[9] < classic.OCCLUSION_SHARE for row in draws)
    assert 5 < covered < 20
