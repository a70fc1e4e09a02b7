"""Whitening to zero mean and unit variance per image, FaceNet's "prewhiten"."""

from __future__ import annotations

import torch
from torch import Tensor

from sparface.kernels.common import at_least_float32, variance_floor
from sparface.kernels.dispatch import fused


def whiten(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Whiten faces [B,3,H,W] in [0,1], or uint8; statistics per image over channels, height and width.

    As in FaceNet, the standard deviation is bounded below by 1/√(3·H·W) grey levels of 255, so a constant
    face becomes zeros with zero gradient. The result is channels-last. It is computed in at least float32,
    even under autocast, and has dtype `dtype`, by default that of the computation.
    """
    if fused(x):
        from sparface.kernels.whiten_triton import Whiten

        return Whiten.apply(x, dtype or torch.float32)  # type: ignore[no-any-return]
    return reference(x, dtype)


def reference(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The torch reference of `whiten`."""
    x = x.to(torch.get_default_dtype()) / 255 if x.dtype == torch.uint8 else at_least_float32(x)
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    whitened = (x - mean) * variance.clamp(min=variance_floor(x)).rsqrt()
    return whitened.to(dtype or x.dtype).contiguous(memory_format=torch.channels_last)


def input_dtype(x: Tensor) -> torch.dtype:
    """The dtype for the input x [B,3,H,W] of a network: bf16 under bf16 autocast, else at least float32.

    Under bf16, the first convolution would round the input anyway. Under fp16, float32 is kept because the
    gradients at the input are small and would underflow.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16:
        return torch.bfloat16
    return torch.promote_types(x.dtype, torch.float32)
