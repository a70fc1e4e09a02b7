"""Definitions shared by the torch references and the Triton kernels."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Mining = Literal["batch_hard", "semi_hard"]
"""Triplet mining strategy; see `kernels.triplet.triplet`."""


class Figures(NamedTuple):
    """The parameters of (x − mean)/√(variance + ε)·weight + bias for n parts: [n,C], at least float32."""

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    eps: float


def variance_floor(x: Tensor) -> float:
    """The lower bound of the variance in whitening faces [B,3,H,W], in [0,1] face units."""
    return 1 / (x[0].numel() * 255**2)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert `x` to float32 if its precision is lower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Identities(NamedTuple):
    """Who b anchors are, and the B faces that they are compared with."""

    anchors: Tensor
    """int64 [b], labels."""
    others: Tensor
    """int64 [B], labels."""
    itself: Tensor
    """int64 [b], the row of each anchor among the other faces; −1 if it is not there."""
    order: Tensor
    """int64 [B], the other faces by label."""
    starts: Tensor
    """int64 [b]; an anchor's identity has the faces `order[starts:ends]`."""
    ends: Tensor
    """int64 [b]."""
