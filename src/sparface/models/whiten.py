"""Whitening: per-image zero mean and unit variance, FaceNet's "prewhiten"."""

from __future__ import annotations

import torch
from torch import Tensor


def whiten(x: Tensor) -> Tensor:
    """Whiten faces [B,3,H,W] in [0,1]; statistics per image over channels, height and width.

    The deviation is bounded below by 1/√(3·H·W) grey levels of 255, as FaceNet does, so that a
    constant face becomes zeros with a zero gradient. At least float32, also under autocast.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    pixels = x[0].numel()
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    return (x - mean) * variance.clamp(min=1 / (pixels * 255**2)).rsqrt()
