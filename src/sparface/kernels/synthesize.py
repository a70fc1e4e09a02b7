"""Sparring faces, also as the recognizer wants them with what the generator's regularisers need of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparface.kernels import whiten
from sparface.kernels.common import at_least_float32
from sparface.kernels.dispatch import fused


def synthesize(x: Tensor, perturbation: Tensor, mask: Tensor, epsilon: float | Tensor) -> Tensor:
    """The sparring face clip(x + ε·δ·m, 0, 1) of faces x [B,3,H,W] in [0,1], in x's precision.

    δ is within ±1, so that the change is within ±ε. `epsilon` is one number for all, or one for each
    face [B,1,1,1].
    """
    change = perturbation.to(x.dtype) * mask.to(x.dtype) * epsilon
    return (x + change).clamp(0, 1)


class Synthesized(NamedTuple):
    """Real and sparring faces whitened, and figures per image."""

    whitened: Tensor
    """[2B,3,H,W], channels-last: the faces x, then their sparring faces."""
    norm: Tensor
    """[B], Frobenius norm of ε·δ·m over channels, height and width."""
    area: Tensor
    """[B], mean of the mask."""
    applied: Tensor
    """[B], mean of |ε·δ·m|, without a gradient."""


def synthesize_whitened(
    x: Tensor, perturbation: Tensor, mask: Tensor, epsilon: float, dtype: torch.dtype
) -> Synthesized:
    """Faces x [B,3,H,W] in [0,1] and their sparring faces clip(x + ε·δ·m, 0, 1), whitened.

    The whitened faces are of type `dtype`. The perturbation δ is [B,3,H,W] in ±1, the mask m [B,1,H,W].
    Computed in at least float32. Gradients go to δ and m; where x needs one, torch does the work.
    """
    if fused(x, perturbation, mask) and not x.requires_grad:
        from sparface.kernels.synthesize_triton import Synthesize

        return Synthesized(*Synthesize.apply(x, perturbation, mask, epsilon, dtype))
    return reference(x, perturbation, mask, epsilon, dtype)


def reference(
    x: Tensor, perturbation: Tensor, mask: Tensor, epsilon: float, dtype: torch.dtype
) -> Synthesized:
    """`synthesize_whitened` in torch."""
    x, perturbation, mask = map(at_least_float32, (x, perturbation, mask))
    face = synthesize(x, perturbation, mask, epsilon)
    change = epsilon * perturbation * mask
    return Synthesized(
        whiten.reference(torch.cat([x, face]), dtype),
        torch.linalg.vector_norm(change, dim=(1, 2, 3)),
        mask.mean((1, 2, 3)),
        change.detach().abs().mean((1, 2, 3)),
    )
