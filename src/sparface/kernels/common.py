"""What an operation's torch reference and its Triton kernels both need; imports neither."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Mining = Literal["batch_hard", "semi_hard"]
"""Which triplets are taken, see `kernels.triplet.triplet`."""


class Figures(NamedTuple):
    """What normalises n parts, each [n,C] and at least float32: (x − mean)/√(variance + ε)·weight + bias."""

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    eps: float


def variance_floor(x: Tensor) -> float:
    """The least variance that faces [B,3,H,W] are divided by when whitened, in [0,1] face units."""
    return 1 / (x[0].numel() * 255**2)


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 if it was narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
