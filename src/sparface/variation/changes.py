"""Compute the faces of a `Variation`: one resampling, then light and colour, resolution, and a patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparface.variation.fields import places, smooth
from sparface.variation.occluders import occlude
from sparface.variation.strong import Variation

DARKEST = 1 / 1024
"""Pixel values are raised to this (a quarter of a grey level), where a power still has a finite slope."""


def apply(faces: Tensor, variation: Variation) -> Tensor:
    """Change faces [b,3,H,W] in [0,1]; differentiable in all fields but `resolution`."""
    with torch.autocast(faces.device.type, enabled=False):  # bf16 coordinates are off by up to 0.2 pixels
        faces = move(faces, variation)
        faces = relight(faces, variation)
        if variation.resolution is not None:
            faces = coarsen(faces, variation.resolution)
        return faces if variation.patch is None else occlude(faces, variation.patch)


def move(faces: Tensor, variation: Variation) -> Tensor:
    """Mirror, rotate, scale, shift, tilt and warp in one bilinear resampling, padding by reflection."""
    seen = sources(variation, faces.shape[2:]).to(faces.dtype)
    return F.grid_sample(faces, seen, padding_mode="reflection", align_corners=False)


def sources(variation: Variation, size: Sequence[int]) -> Tensor:
    """Where each pixel of the changed faces is taken from: [b,H,W,2], x and y; the face is in [−1, 1]."""
    height, width = size
    x, y = places(width, variation.warp), places(height, variation.warp)[:, None]
    zoom = torch.exp(variation.scale)
    cos, sin = (_over_pixels(f(variation.rotation) * zoom) for f in (torch.cos, torch.sin))
    mirror = 1 if variation.mirror is None else _over_pixels(variation.mirror)
    right, down = (_over_pixels(2 * shift) for shift in variation.shift.unbind(1))
    tilt_x, tilt_y = (_over_pixels(tilt) for tilt in variation.perspective.unbind(1))
    nearness = 1 / (1 + tilt_x * x + tilt_y * y)
    moved_x = (mirror * cos * x - sin * y) * nearness + right
    moved_y = (mirror * sin * x + cos * y) * nearness + down
    return torch.stack([moved_x, moved_y], 3) + smooth(variation.warp, size, "bicubic").movedim(1, 3)


def relight(faces: Tensor, variation: Variation) -> Tensor:
    """Change gamma, contrast, saturation, tint and the field of light, in this order."""
    exponent = _over_faces(torch.exp(variation.gamma))
    faces = torch.exp(exponent * torch.log(faces.clamp(min=DARKEST)))  # half the time of a power
    inverse = _over_faces(torch.exp(-variation.contrast))
    centred = 2 * faces - 1
    curved = centred / (inverse + (1 - inverse) * centred.abs())  # Schlick's gain: monotonic
    colour = torch.exp(variation.saturation)
    if variation.grey is not None:
        colour = colour * (1 - variation.grey)
    coloured = torch.lerp(curved.mean(1, keepdim=True), curved, _over_faces(colour))
    half = torch.exp(variation.tint)[..., None, None] / 2
    light = torch.exp(smooth(variation.light, faces.shape[2:], "bilinear"))
    return ((coloured * half + half) * light).clamp(0, 1)


def coarsen(faces: Tensor, resolution: Tensor) -> Tensor:
    """Resample faces to a fraction [b] of their side, and back: antialiased down and bilinear up.

    Both are linear along each axis, so together they are one matrix per face and axis. One batched product
    gives each face a resolution of its own, without knowing on the host which faces lose it.
    """
    down, across = (_resampling(resolution, side) for side in faces.shape[2:])
    return down[:, None] @ faces @ across[:, None].mT


def _resampling(resolution: Tensor, side: int) -> Tensor:
    """[b,side,side]: resample `side` pixels to round(resolution · side), and back."""
    count = (resolution * side).round().clamp(1, side)[:, None, None]
    pixels = torch.arange(side, device=count.device, dtype=count.dtype)
    coarse = pixels[:, None]
    shrink = side / count
    down = (1 - ((pixels + 0.5) / shrink - coarse - 0.5).abs()).clamp(min=0)
    down = down / down.sum(2, keepdim=True).clamp(min=1e-6)
    where = ((coarse + 0.5) / shrink - 0.5).clamp(min=0)
    up = (1 - (torch.minimum(where, count - 1) - pixels).abs()).clamp(min=0)
    return up @ down


def _over_pixels(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _over_faces(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
