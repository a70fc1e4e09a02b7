"""Faster bf16 convolutions on CPUs without bf16 instructions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


@cache
def convolve_in_float32() -> torch.library.Library:
    """Make autocast's CPU convolutions compute in float32 on values rounded to bf16, for the whole process.

    bf16 instructions do the same: products and sums in float32, then a rounded result. Without them, torch
    unfolds every image and multiplies in bf16, which is ten times as slow.
    """
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")  # type: ignore[no-untyped-call]
    convolutions: dict[str, Callable[..., Tensor]] = {
        "conv2d": F.conv2d,
        "conv_transpose2d.input": F.conv_transpose2d,
    }
    for name, convolution in convolutions.items():
        library.impl(name, _rounding(convolution), allow_override=True)  # type: ignore[no-untyped-call]
    return library


def _rounding(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: object) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            rounded = [None if t is None else t.to(dtype).float() for t in (x, weight, bias)]
            return convolution(*rounded, *settings).to(dtype)

    return convolve
