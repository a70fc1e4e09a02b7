"""Losses as pure functions of tensors. No device synchronisation; every loss is a mean over images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(cosines: Tensor, labels: Tensor, scale: float = 32.0) -> Tensor:
    """Softmax cross-entropy of scale·cosines [N, identities] (NormFace, Wang et al. 2017)."""
    return F.cross_entropy(scale * cosines, labels)


def arcface(cosines: Tensor, labels: Tensor, margin: float = 0.5, scale: float = 32.0) -> Tensor:
    """ArcFace (Deng et al. 2019): cross-entropy with `margin` radians added to the label's angle."""
    return F.cross_entropy(scale * arcface_cosines(cosines, labels, margin), labels)


def arcface_cosines(cosines: Tensor, labels: Tensor, margin: float) -> Tensor:
    """cos(θ + margin) in place of the label's cosine [N, identities].

    Beyond θ = π − margin, where cos(θ + margin) would rise again, cos θ − margin·sin(margin) goes on.
    """
    own = cosines.gather(1, labels[:, None])
    sine = (1 - own.square()).clamp(min=1e-12).sqrt()
    added = own * math.cos(margin) - sine * math.sin(margin)
    beyond = own - margin * math.sin(margin)
    return cosines.scatter(1, labels[:, None], torch.where(own > -math.cos(margin), added, beyond))


def untargeted(source: Tensor, sparring: Tensor) -> Tensor:
    """Mean cosine of unit embeddings [N,E] of sparring faces and their (fixed) sources; to be minimised."""
    return (source.detach() * sparring).sum(1).mean()


def targeted(sparring: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over images of ‖sparring − target‖² of embeddings [N,E], 0 where not `valid` [N].

    Summed over components, so that its size (0 to 4 on the unit sphere) does not depend on E.
    """
    return ((sparring - target.detach()).square().sum(1) * valid).mean()


def image(sparring: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error of sparring faces to target faces [N,C,H,W], 0 where not `valid` [N]."""
    return ((sparring - target).square().mean((1, 2, 3)) * valid).mean()


def mean_pairwise_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine of different rows of unit embeddings [N,E]; near 1 when they have collapsed."""
    count = len(embeddings)
    return (embeddings.sum(0).square().sum() - count) / max(1, count * (count - 1))


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None  # type: ignore[attr-defined]


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """x itself, whose gradient comes back times −weight (gradient reversal, Ganin & Lempitsky 2015)."""
    return _Reverse.apply(x, weight)  # type: ignore[no-any-return]
