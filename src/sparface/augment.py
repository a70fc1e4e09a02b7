"""Classic augmentation on the device: mirror, shift, scale, rotation, light and occlusion.

Each face's changes are drawn from (seed, its position in the stream), so they are the same for any
number of processes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sparface.randomness import uniform

STREAM = 1
ROTATION = math.radians(10)
SHIFT = 0.08
"""Of the face's side."""
SCALE = 0.1
BRIGHTNESS = 0.15
CONTRAST = 0.25
OCCLUSION_SHARE = 0.3
"""Share of faces that get a patch."""
OCCLUSION_SIDE = (0.15, 0.4)
"""Of the face's side."""


def classic(faces: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Augmented faces [B,3,H,W] in [0,1] of faces in [0,1] at stream `positions` int64 [B]."""
    draws = uniform(seed, positions, 13, STREAM).to(faces.dtype)
    return _occlude(_relight(_warp(faces, draws[:, :5]), draws[:, 5:7]), draws[:, 7:])


def _warp(faces: Tensor, draws: Tensor) -> Tensor:
    """Mirror, rotate, scale and shift by one resampling; what comes in from outside is reflected."""
    mirror = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    angle = _around_zero(draws[:, 1], ROTATION)
    scale = 1 + _around_zero(draws[:, 2], SCALE)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = _around_zero(draws[:, 3], 2 * SHIFT), _around_zero(draws[:, 4], 2 * SHIFT)
    rows = [mirror * cos, -sin, shift_x, mirror * sin, cos, shift_y]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(faces.shape), align_corners=False)
    return F.grid_sample(faces, grid, padding_mode="reflection", align_corners=False)


def _relight(faces: Tensor, draws: Tensor) -> Tensor:
    mean = faces.mean((1, 2, 3), keepdim=True)
    contrast = torch.exp(_around_zero(draws[:, 0], CONTRAST)).view(-1, 1, 1, 1)
    brightness = _around_zero(draws[:, 1], BRIGHTNESS).view(-1, 1, 1, 1)
    return ((faces - mean) * contrast + mean + brightness).clamp(0, 1)


def _occlude(faces: Tensor, draws: Tensor) -> Tensor:
    """Cover a rectangle of some faces with one grey."""
    height, width = faces.shape[-2:]
    low, high = OCCLUSION_SIDE
    half_height, half_width = ((low + (high - low) * draws[:, i, None]) / 2 for i in (1, 2))
    rows = (torch.arange(height, device=faces.device) + 0.5) / height
    columns = (torch.arange(width, device=faces.device) + 0.5) / width
    inside_y = (rows - draws[:, 3, None]).abs() < half_height
    inside_x = (columns - draws[:, 4, None]).abs() < half_width
    covered = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    covered &= (draws[:, 0] < OCCLUSION_SHARE).view(-1, 1, 1, 1)
    return torch.where(covered, draws[:, 5].view(-1, 1, 1, 1), faces)


def _around_zero(draw: Tensor, size: float) -> Tensor:
    """[0,1) → [−size, size)."""
    return (2 * draw - 1) * size
