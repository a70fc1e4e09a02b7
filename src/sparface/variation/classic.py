"""The classic variation: mirroring, shift, scale, rotation, lighting and occlusion.

The changes to a face are drawn from (seed, position in the stream), so they do not depend on the number
of processes. Recognizers whiten each face, which cancels brightness and contrast, so lighting is varied
in ways that survive whitening.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sparface.randomness import uniform
from sparface.variation.fields import places

STREAM = 1
ROTATION = math.radians(10)
SHIFT = 0.08
"""Largest shift, as a fraction of the face's side."""
SCALE = 0.1
GAMMA = 0.4
"""Largest change of the log of the gamma exponent."""
SLOPE = 0.4
"""Largest change of the log of the light, from the centre to each side."""
SATURATION = 0.4
"""Largest change of the log of the saturation."""
OCCLUSION_SHARE = 0.3
"""Share of faces that get a patch."""
OCCLUSION_SIDE = (0.15, 0.4)
"""Range of the patch's sides, as fractions of the face's side."""


def vary(faces: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Vary faces [B,3,H,W] in [0,1]; `positions` int64 [B] are their positions in the stream."""
    draws = uniform(seed, positions, 15, STREAM).to(faces.dtype)
    with torch.autocast(faces.device.type, enabled=False):  # bf16 coordinates are off by up to 0.2 pixels
        faces = warp(faces, draws[:, :5], ROTATION, SHIFT, SCALE)
        faces = relight(faces, draws[:, 5:9], GAMMA, SLOPE, SATURATION)
        return occlude(faces, draws[:, 9:], OCCLUSION_SHARE, OCCLUSION_SIDE)


def warp(faces: Tensor, draws: Tensor, rotation: float, shift: float, scale: float) -> Tensor:
    """Mirror, rotate, scale and shift in one resampling, padding by reflection; `draws` [B,5] in [0,1).

    Half of the faces are mirrored. `rotation` (radians), `shift` and `scale` are the largest changes.
    """
    mirror = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    angle = _around_zero(draws[:, 1], rotation)
    size = 1 + _around_zero(draws[:, 2], scale)
    cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
    shift_x, shift_y = _around_zero(draws[:, 3], 2 * shift), _around_zero(draws[:, 4], 2 * shift)
    rows = [mirror * cos, -sin, shift_x, mirror * sin, cos, shift_y]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(faces.shape), align_corners=False)
    return F.grid_sample(faces, grid, padding_mode="reflection", align_corners=False)


def relight(faces: Tensor, draws: Tensor, gamma: float, slope: float, saturation: float) -> Tensor:
    """Change gamma, saturation and the gradient of light across the face; `draws` [B,4] in [0,1).

    Each is a factor whose logarithm is drawn uniformly between ± the given value. `slope` is the factor
    between the light at the sides and at the centre, vertically and horizontally.
    """
    exponent, colour = (
        torch.exp(_around_zero(draws[:, i], size)) for i, size in ((0, gamma), (1, saturation))
    )
    faces = faces.clamp(min=0) ** exponent.view(-1, 1, 1, 1)
    grey = faces.mean(1, keepdim=True)
    faces = grey + (faces - grey) * colour.view(-1, 1, 1, 1)
    down, right = (_around_zero(draws[:, i], slope).view(-1, 1, 1, 1) for i in (2, 3))
    y, x = (places(count, faces) for count in faces.shape[2:])
    light = torch.exp(down * y.view(-1, 1) + right * x)
    return (faces * light).clamp(0, 1)


def occlude(faces: Tensor, draws: Tensor, share: float, side: tuple[float, float]) -> Tensor:
    """Cover a rectangle in a `share` of the faces with a uniform grey; `draws` [B,6] in [0,1).

    `side` is the range of its height and width, as fractions of the face's.
    """
    low, high = side
    half_height, half_width = (low + (high - low) * draws[:, i, None] for i in (1, 2))
    inside_y = (places(faces.shape[2], faces) - _around_zero(draws[:, 3, None], 1)).abs() < half_height
    inside_x = (places(faces.shape[3], faces) - _around_zero(draws[:, 4, None], 1)).abs() < half_width
    covered = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    covered &= (draws[:, 0] < share).view(-1, 1, 1, 1)
    return torch.where(covered, draws[:, 5].view(-1, 1, 1, 1), faces)


def _around_zero(draw: Tensor, size: float) -> Tensor:
    """Map [0,1) to [−size, size)."""
    return (2 * draw - 1) * size
