"""Choose the implementation of a fused operation: torch on the CPU, Triton on CUDA."""

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
    """Set the choice for this process. Raises `UserError` if Triton is requested but not installed."""
    if choice == "triton" and not _installed():
        raise UserError("training.kernels: triton is not installed; run `pip install triton`, or use auto")
    global _choice
    _choice = choice


def fused(*tensors: Tensor) -> bool:
    """Whether to use Triton for these tensors.

    The kernels compute in float32, so float64 tensors use torch. So does everything inside `torch.compile`,
    which fuses the torch references itself.
    """
    if torch.compiler.is_compiling():
        return False
    if _choice == "torch" or any(t.dtype == torch.float64 or t.numel() == 0 for t in tensors):
        return False
    return _choice == "triton" or (tensors[0].is_cuda and _installed())


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, sequentially on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
