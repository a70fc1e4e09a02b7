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


def untargeted(sparring: Tensor, faces: Tensor, own: Tensor) -> Tensor:
    """Mean over sparring faces [b] of how much nearer each is to its own identity than to another.

    The mean cosine to those of the (fixed) `faces` [B] that are its `own` [b,B], minus the greatest to one
    of the others (the margin of Carlini & Wagner 2017, on embeddings); to be minimised. Unlike the cosine to
    the source, it has a slope where a sparring face still equals its source. It is in units of the mean
    distance between `faces`: young embeddings are so close together that any regulariser would outweigh it.
    """
    faces = faces.detach()
    cosines = sparring @ faces.T
    near = (cosines * own).sum(1) / own.sum(1)
    far = torch.where(own, -1.0, cosines).amax(1)
    return (near - far).mean() / (1 - mean_pairwise_cosine(faces)).clamp(min=1e-3)


def targeted(cosines: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance (0 to 4) of sparring faces to the identity head's directions of `targets` [b],
    by their cosines to all directions [b, identities]."""
    return (2 - 2 * cosines.gather(1, targets[:, None])).mean()


@torch.no_grad()
def changed_decisions(real: Tensor, sparring: Tensor, faces: Tensor, own: Tensor, itself: Tensor) -> Tensor:
    """Share of faces [b] that are recognized among `faces` [B], but whose sparring faces are not.

    A face is recognized when the nearest of `faces`, but for `itself` [b,B], is one of its `own` [b,B].
    """

    def recognized(embeddings: Tensor) -> Tensor:
        nearest = torch.where(itself, -2.0, embeddings @ faces.T).argmax(1, keepdim=True)
        return own.gather(1, nearest)[:, 0]

    return (recognized(real) & ~recognized(sparring)).to(torch.float32).mean()


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
