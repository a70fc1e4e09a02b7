"""Losses as pure functions of tensors. No device synchronisation; every loss is a mean over images."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def triplet(
    embeddings: Tensor,
    labels: Tensor,
    margin: float = 0.2,
    mining: Literal["batch_hard", "semi_hard"] = "semi_hard",
    against: Tensor | None = None,
) -> Tensor:
    """Triplet loss max(0, d(a,p) − d(a,n) + margin) on squared Euclidean distances (Schroff et al. 2015).

    Every row of `embeddings` [N,E] is an anchor a; positives p and negatives n are the faces of the
    same and of other `labels` [N] among `against` [N,E], which has the same labels row by row. By
    default that is the anchors themselves, and an anchor is not its own positive.

    `batch_hard` (Hermans et al. 2017): the furthest positive and the nearest negative of each anchor;
    the mean is over anchors that have both. `semi_hard`: for each pair (a, p) the nearest negative
    that is further than p, or the furthest negative where none is; the mean is over all pairs whose
    anchor has a negative. Without any such anchor or pair the loss is 0.
    """
    same = labels[:, None] == labels[None, :]
    positive = same
    if against is None:
        against = embeddings
        positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    distances = squared_distances(embeddings, against)
    mine = {"batch_hard": _batch_hard, "semi_hard": _semi_hard}[mining]
    return mine(distances, positive, ~same, margin)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[N,M] squared Euclidean distances of rows [N,E] and [M,E], not below 0."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None, :]
    return (squares - 2 * a @ b.T).clamp(min=0)


def _batch_hard(distances: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    furthest = distances.masked_fill(~positive, -1).amax(1)
    nearest = distances.masked_fill(~negative, math.inf).amin(1)
    valid = positive.any(1) & negative.any(1)
    return _mean(furthest - nearest + margin, valid)


def _semi_hard(distances: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    negatives, _ = distances.masked_fill(~negative, math.inf).sort(dim=1, stable=True)
    last = negative.sum(1, keepdim=True) - 1
    # sorted rows: the first entry beyond d(a,p) is the nearest negative that is further than p
    index = torch.searchsorted(negatives.detach(), distances.detach().contiguous(), right=True)
    chosen = negatives.gather(1, torch.minimum(index, last).clamp(min=0))
    return _mean(distances - chosen + margin, positive & (last >= 0))


def _mean(violations: Tensor, valid: Tensor) -> Tensor:
    """Mean of max(0, violation) where valid, 0 if nowhere."""
    return violations.masked_fill(~valid, 0).relu().sum() / valid.sum().clamp(min=1)


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


def perturbation_norm(perturbation: Tensor, mask: Tensor) -> Tensor:
    """Mean over images of the Frobenius norm of δ·m over channels, height and width."""
    norms: Tensor = torch.linalg.vector_norm(perturbation * mask, dim=(1, 2, 3))
    return norms.mean()


def mask_area(mask: Tensor) -> Tensor:
    """Mean of the mask [N,1,H,W], in [0,1]."""
    return mask.mean()


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
