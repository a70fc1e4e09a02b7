"""Changes that hide from a discriminator how few real faces there are (Zhao et al. 2020).

Real and made faces are changed by the same distribution, and the generator's gradient passes through it. The
changes are mild enough that made faces do not take them over.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparface.randomness import uniform
from sparface.variation.changes import apply
from sparface.variation.occluders import Occluders, between
from sparface.variation.strong import PARAMETERS, bounded

GAMMA = 0.5
"""Largest change of the log of the gamma exponent."""
CONTRAST = 0.5
"""Largest change of the log of the slope at mid-grey."""
SATURATION = 0.7
"""Largest change of the log of the difference to grey."""
SHIFT = 1 / 8
"""Largest shift, in whole pixels, as a fraction of the side."""
PATCH = 0.5
"""Side of the mid-grey patch, as a fraction of the face's; a part of it may be outside."""


def hide(faces: Tensor, seed: int, positions: Tensor, stream: int) -> Tensor:
    """Change faces [b,3,H,W] in [0,1]; differentiable in them. `positions` int64 [b] are those in the stream,
    and `stream` is one of `sparface.randomness`."""
    draws = uniform(seed, positions, 7, stream).to(faces.dtype)
    sides = torch.tensor(faces.shape[:1:-1], dtype=faces.dtype, device=faces.device)  # W, H
    pixels = (between(-SHIFT, SHIFT, draws[:, :2]) * sides).round()
    patch = Occluders(
        centre=between(-1, 1, draws[:, 2:4]),
        size=torch.full_like(draws[:, 2:4], PATCH),
        angle=torch.zeros_like(draws[:, 0]),
        opacity=torch.ones_like(draws[:, 0]),
        texture=torch.full_like(faces[:1, :, :1, :1], 0.5),
    )
    still = bounded(torch.zeros_like(draws[:, :1]).expand(-1, PARAMETERS))
    return apply(
        faces,
        replace(
            still,
            shift=pixels / sides,
            gamma=between(-GAMMA, GAMMA, draws[:, 4]),
            contrast=between(-CONTRAST, CONTRAST, draws[:, 5]),
            saturation=between(-SATURATION, SATURATION, draws[:, 6]),
            patch=patch,
        ),
    )
