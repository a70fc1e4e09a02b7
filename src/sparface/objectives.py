"""Losses as pure functions of tensors. No device synchronisation; every loss is a mean over images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(cosines: Tensor, labels: Tensor, scale: float = 32.0, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of scale·cosines [N, identities] (NormFace, Wang et al. 2017).

    With label smoothing (Szegedy et al. 2016), a share `smoothing` of each target is spread evenly over all
    identities.
    """
    return F.cross_entropy(scale * cosines, labels, label_smoothing=smoothing)


def arcface(
    cosines: Tensor, labels: Tensor, margin: float = 0.5, scale: float = 32.0, smoothing: float = 0.0
) -> Tensor:
    """ArcFace (Deng et al. 2019): `cross_entropy` with `margin` radians added to the angle to the label."""
    return cross_entropy(arcface_cosines(cosines, labels, margin), labels, scale, smoothing)


def arcface_cosines(cosines: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Replace the label's cosine in [N, identities] by cos(θ + margin).

    Beyond θ = π − margin, where cos(θ + margin) would rise again, use cos θ − margin·sin(margin) instead.
    """
    own = cosines.gather(1, labels[:, None])
    sine = (1 - own.square()).clamp(min=1e-12).sqrt()
    added = own * math.cos(margin) - sine * math.sin(margin)
    beyond = own - margin * math.sin(margin)
    return cosines.scatter(1, labels[:, None], torch.where(own > -math.cos(margin), added, beyond))


def contrast(cosines: Tensor, itself: Tensor, own: Tensor, scale: float = 32.0) -> Tensor:
    """Cross-entropy of scale·cosines [b,B] of embeddings to a teacher's, where each must find `itself`.

    `itself` and `own` are bool [b,B]: the same face, and the same identity, whose other faces do not count.
    (InfoNCE, van den Oord et al. 2018, between student and teacher, as in CRD, Tian et al. 2020.)
    """
    logits = (scale * cosines).masked_fill(own & ~itself, -math.inf)
    return (logits.logsumexp(1) - scale * (cosines * itself).sum(1)).mean()


def untargeted(sparring: Tensor, faces: Tensor, own: Tensor) -> Tensor:
    """Mean of the `margins`, which an attack minimises."""
    return margins(sparring, faces, own).mean()


def margins(sparring: Tensor, faces: Tensor, own: Tensor) -> Tensor:
    """Margins [b] by which sparring faces [b] are nearer to their own identity than to any other.

    The margin is the mean cosine to the (detached) `faces` [B] of the same identity (`own` [b,B]) minus the
    largest cosine to another identity (Carlini & Wagner 2017, on embeddings). Unlike the cosine to the
    source, it has a non-zero gradient where a sparring face still equals its source. It is divided by the
    mean distance between `faces`: early in training embeddings are so close together that any regulariser
    would outweigh it.
    """
    faces = faces.detach()
    cosines = sparring @ faces.T
    near = (cosines * own).sum(1) / own.sum(1)
    far = torch.where(own, -1.0, cosines).amax(1)
    return (near - far) / (1 - mean_pairwise_cosine(faces)).clamp(min=1e-3)


def targeted(cosines: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance (0 to 4) from sparring faces to the identity head's directions of `targets` [b].

    `cosines` [b, identities] are those of the sparring faces to all directions.
    """
    return (2 - 2 * cosines.gather(1, targets[:, None])).mean()


@torch.no_grad()
def changed_decisions(real: Tensor, sparring: Tensor, faces: Tensor, own: Tensor, itself: Tensor) -> Tensor:
    """Share of faces [b] that are recognized among `faces` [B] while their sparring faces are not.

    The arguments `own` and `itself` [b,B] are as in `recognized`.
    """
    kept = recognized(sparring, faces, own, itself)
    return (recognized(real, faces, own, itself) & ~kept).to(torch.float32).mean()


@torch.no_grad()
def recognized(embeddings: Tensor, faces: Tensor, own: Tensor, itself: Tensor) -> Tensor:
    """Whether the nearest of `faces` [B] to each embedding [b], excluding `itself` [b,B], has the same
    identity (`own` [b,B])."""
    nearest = torch.where(itself, -2.0, embeddings @ faces.T).argmax(1, keepdim=True)
    return own.gather(1, nearest)[:, 0]


def mean_pairwise_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine between different rows of unit embeddings [N,E]; near 1 when they have collapsed."""
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
    """Return x; its gradient is multiplied by −weight (gradient reversal, Ganin & Lempitsky 2015)."""
    return _Reverse.apply(x, weight)  # type: ignore[no-any-return]
