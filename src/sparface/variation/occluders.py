"""Occluders: textured rectangles that cover a part of a face, at random or where a network puts them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparface.kernels.common import at_least_float32
from sparface.randomness import uniform
from sparface.variation.fields import places, smooth

STREAM = 6
"""Default stream of `sparface.randomness`."""
SHARES = (0.4, 0.3, 0.3)
"""Of the kinds of texture: one colour, mostly dark; smooth noise; the face itself, turned by 180°."""
NOISE_POINTS = (3, 6, 14)
"""Scales of noise: points per side between which it is interpolated."""
TEXTURE_DRAWS = 7 + len(NOISE_POINTS) + 3 * sum(n * n for n in NOISE_POINTS)
"""Random numbers that a texture takes."""


@dataclass(frozen=True)
class Occluders:
    """One rectangle per face. x is to the right and y down, from −1 to 1 over the face."""

    centre: Tensor
    """[b,2], x and y."""
    size: Tensor
    """[b,2], width and height, as fractions of the face's side."""
    angle: Tensor
    """[b], clockwise, in radians."""
    opacity: Tensor
    """[b], from 0 (the face is not covered) to 1."""
    texture: Tensor
    """In [0,1]; broadcast to [b,3,H,W]."""


@dataclass(frozen=True)
class Family:
    """Where random occluders are and how large, as ranges of uniform draws."""

    width: tuple[float, float] = (0.2, 0.9)
    """As a fraction of the face's side."""
    height: tuple[float, float] = (0.12, 0.45)
    reach: float = 0.9
    """Largest distance of the centre from the middle of the face, along x and y; 1 is the edge."""
    tilt: float = math.radians(20)
    """Largest angle, in radians."""
    share: float = 1.0
    """Share of faces that are covered."""


WIDE = Family()
"""Sunglasses (a bar over the eyes), scarves and masks (a block over the mouth), hands and hair."""


def draw_occluders(
    faces: Tensor, seed: int, positions: Tensor, family: Family = WIDE, stream: int = STREAM
) -> Occluders:
    """Draw an occluder for each face [b,3,H,W] in [0,1]; `positions` int64 [b] are those in the stream.

    Everything depends on (seed, position, stream) and the face itself, so it does not depend on the number
    of processes. A texture from another face of the batch would: processes see different parts of it.
    """
    draws = uniform(seed, positions, 6 + TEXTURE_DRAWS, stream).to(faces.dtype)
    ranges = (family.width, family.height)
    return Occluders(
        centre=between(-family.reach, family.reach, draws[:, 0:2]),
        size=torch.stack([between(*limits, draws[:, 2 + i]) for i, limits in enumerate(ranges)], 1),
        angle=between(-family.tilt, family.tilt, draws[:, 4]),
        opacity=(draws[:, 5] < family.share).to(faces.dtype),
        texture=textures(faces, draws[:, 6:]),
    )


def occlude(faces: Tensor, occluders: Occluders, edge: float = 1.0) -> Tensor:
    """Cover faces [b,3,H,W]; differentiable in everything. `edge` is as in `coverage`."""
    with torch.autocast(faces.device.type, enabled=False):
        cover = coverage(occluders, faces.shape[2:], edge).to(faces.dtype)
        return torch.lerp(faces, occluders.texture.to(faces.dtype).expand_as(faces), cover)


def coverage(occluders: Occluders, size: Sequence[int], edge: float = 1.0) -> Tensor:
    """How much of each pixel is covered, times the opacity: [b,1,H,W] for faces of `size` (H, W).

    Edges rise linearly over `edge` pixels. With 1 and an angle of 0 it is the covered area of each pixel.
    Wider edges give a place or a size that is learned a gradient at more pixels.
    """
    height, width = size
    centre, half, angle, opacity = (
        at_least_float32(t)[..., None, None]
        for t in (occluders.centre, occluders.size, occluders.angle, occluders.opacity)
    )
    right = places(width, half) - centre[:, 0]
    down = places(height, half)[:, None] - centre[:, 1]
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = _overlap(cos * right + sin * down, half[:, 0], edge / width)
    along = _overlap(cos * down - sin * right, half[:, 1], edge / height)
    return (across * along * opacity)[:, None]


def _overlap(place: Tensor, half: Tensor, ramp: float) -> Tensor:
    """The share of [place − ramp, place + ramp] that lies in [−half, half]."""
    inside = half + ramp - place.abs()
    return torch.minimum(inside, 2 * half).clamp(0, 2 * ramp) / (2 * ramp)


def textures(faces: Tensor, draws: Tensor) -> Tensor:
    """Textures [b,3,H,W] in [0,1] of the kinds in `SHARES`, for faces of that shape, from `draws`
    [b, TEXTURE_DRAWS] in [0,1)."""
    noise = _noise(draws[:, 7:], faces.shape[2:])
    kind, brightness, vivid, contrast = (draws[:, i, None, None, None] for i in range(4))
    tint, pattern = 0.6 * (draws[:, 4:7, None, None] - 0.5), 2 * contrast * (noise - 0.5)
    coloured = vivid < 0.5
    colour = brightness**2 + torch.where(coloured, tint, 0)
    patterned = colour + torch.where(coloured, pattern, pattern.mean(1, keepdim=True))
    plain_until, noise_until = SHARES[0], SHARES[0] + SHARES[1]
    drawn = torch.where(kind < plain_until, colour, patterned).clamp(0, 1)
    return torch.where(kind < noise_until, drawn, faces.flip(2, 3))


def _noise(draws: Tensor, size: Sequence[int]) -> Tensor:
    """Noise [b,3,*size] in [0,1], a mixture of `NOISE_POINTS` with drawn weights."""
    weights = draws[:, : len(NOISE_POINTS)] ** 3  # mostly one scale
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    fields = torch.split(draws[:, len(NOISE_POINTS) :], [3 * n * n for n in NOISE_POINTS], 1)
    finest = max(NOISE_POINTS)
    fine = [
        smooth(field.reshape(-1, 3, n, n), (finest, finest), "bilinear")
        for field, n in zip(fields, NOISE_POINTS, strict=True)
    ]
    mixed = (torch.stack(fine, 1) * weights[..., None, None, None]).sum(1)
    return smooth(mixed, size, "bilinear")


def between(low: float, high: float, draws: Tensor) -> Tensor:
    """Map [0,1) to [low, high)."""
    return low + (high - low) * draws
