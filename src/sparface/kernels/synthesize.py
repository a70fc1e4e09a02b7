"""Synthesize sparring faces, optionally whitened and with the statistics for the generator's regularisers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparface.kernels import whiten
from sparface.kernels.common import at_least_float32
from sparface.kernels.dispatch import fused


def synthesize(x: Tensor, perturbation: Tensor, mask: Tensor, epsilon: float | Tensor) -> Tensor:
    """The sparring faces clip(x + ε·δ·m, 0, 1) of faces x [B,3,H,W] in [0,1], in the precision of x.

    δ is in [−1,1], so the change is in [−ε,ε]. `epsilon` is a number, or one per face [B,1,1,1].
    """
    change = perturbation.to(x.dtype) * mask.to(x.dtype) * epsilon
    return (x + change).clamp(0, 1)


class Synthesized(NamedTuple):
    """Whitened real and sparring faces, and statistics per face."""

    whitened: Tensor
    """[2B,3,H,W], channels-last: the faces x, then their sparring faces."""
    norm: Tensor
    """[B]: Frobenius norm of ε·δ·m over channels, height and width."""
    area: Tensor
    """[B]: mean of the mask."""
    applied: Tensor
    """[B]: mean of |ε·δ·m|, without gradient."""


def synthesize_whitened(
    x: Tensor, perturbation: Tensor, mask: Tensor, epsilon: float, dtype: torch.dtype
) -> Synthesized:
    """Whiten faces x [B,3,H,W] in [0,1] and their sparring faces clip(x + ε·δ·m, 0, 1).

    The whitened faces have dtype `dtype`; the computation is in at least float32. The perturbation δ is
    [B,3,H,W] in [−1,1], the mask m is [B,1,H,W]. Differentiable in δ and m; if x requires a gradient, torch
    is used.
    """
    if fused(x, perturbation, mask) and not x.requires_grad:
        from sparface.kernels.synthesize_triton import Synthesize

        return Synthesized(*Synthesize.apply(x, perturbation, mask, epsilon, dtype))
    return reference(x, perturbation, mask, epsilon, dtype)


def reference(
    x: Tensor, perturbation: Tensor, mask: Tensor, epsilon: float, dtype: torch.dtype
) -> Synthesized:
    """The torch reference of `synthesize_whitened`."""
    x, perturbation, mask = map(at_least_float32, (x, perturbation, mask))
    face = synthesize(x, perturbation, mask, epsilon)
    change = epsilon * perturbation * mask
    return Synthesized(
        whiten.reference(torch.cat([x, face]), dtype),
        torch.linalg.vector_norm(change, dim=(1, 2, 3)),
        mask.mean((1, 2, 3)),
        change.detach().abs().mean((1, 2, 3)),
    )
