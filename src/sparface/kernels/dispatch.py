"""Which implementation of a fused operation takes a tensor: torch on the CPU, Triton on CUDA."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from sparface.config import Kernels
from sparface.errors import UserError

_choice: Kernels = "auto"


def use(choice: Kernels) -> None:
    """Choose for this process. Raises `UserError` where Triton is asked for and missing."""
    if choice == "triton" and not _installed():
        raise UserError(
            "training.kernels: triton is not installed; run pip install triton, or set it to auto"
        )
    global _choice
    _choice = choice


def fused(*tensors: Tensor) -> bool:
    """Whether Triton takes these tensors. Its kernels compute in float32: float64 is torch's.

    Inside `torch.compile` none of them does: the compiler fuses what torch's references do.
    """
    if torch.compiler.is_compiling():
        return False
    if _choice == "torch" or any(t.dtype == torch.float64 or t.numel() == 0 for t in tensors):
        return False
    return _choice == "triton" or (tensors[0].is_cuda and _installed())


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, one program after the other, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
