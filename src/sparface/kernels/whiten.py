"""Whitening: per-image zero mean and unit variance, FaceNet's "prewhiten"."""

from __future__ import annotations

import torch
from torch import Tensor

from sparface.kernels.common import at_least_float32, variance_floor
from sparface.kernels.dispatch import fused


def whiten(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Whiten faces [B,3,H,W] in [0,1], or uint8; statistics per image over channels, height and width.

    The deviation is bounded below by 1/√(3·H·W) grey levels of 255, as FaceNet does, so that a
    constant face becomes zeros with a zero gradient. The result is channels-last, computed in at least
    float32 also under autocast, and of `dtype`, by default that of the computation.
    """
    if fused(x):
        from sparface.kernels.whiten_triton import Whiten

        return Whiten.apply(x, dtype or torch.float32)  # type: ignore[no-any-return]
    return reference(x, dtype)


def reference(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`whiten` in torch."""
    x = x.to(torch.get_default_dtype()) / 255 if x.dtype == torch.uint8 else at_least_float32(x)
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    whitened = (x - mean) * variance.clamp(min=variance_floor(x)).rsqrt()
    return whitened.to(dtype or x.dtype).contiguous(memory_format=torch.channels_last)


def input_dtype(x: Tensor) -> torch.dtype:
    """What a network should get that sees x [B,3,H,W]: bf16 under that autocast, else at least float32.

    The first convolution would round to bf16 anyway. Not so fp16: the gradients that come back to the
    input are small, and would vanish in it.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16:
        return torch.bfloat16
    return torch.promote_types(x.dtype, torch.float32)
