"""The losses of the recipes by their formulas, one sample after the other: plain torch, nothing of sparface.

Autograd of these gives the gradients that a step must have.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sparface.recipes.recognizer import ObjectiveConfig

Values = dict[str, Tensor]


def whitened(faces: Tensor) -> Tensor:
    """FaceNet's prewhitening of faces [N,3,H,W] in [0,1]."""
    done = []
    for face in faces:
        deviation = (face - face.mean()).square().mean().sqrt()
        done.append((face - face.mean()) / deviation.clamp(min=1 / math.sqrt(face.numel()) / 255))
    return torch.stack(done)


def triplet(anchors: Tensor, others: Tensor, labels: list[int], margin: float, mining: str) -> Tensor:
    """Schroff et al. 2015; where `others` are the anchors, none is its own positive."""
    losses = []
    for i, anchor in enumerate(anchors):
        distances = [(anchor - other).square().sum() for other in others]
        itself = {i} if others is anchors else set()
        near = [d for j, d in enumerate(distances) if labels[j] == labels[i] and j not in itself]
        far = [d for j, d in enumerate(distances) if labels[j] != labels[i]]
        if not near or not far:
            continue
        pairs = [(max(near), min(far))]
        if mining == "semi_hard":
            pairs = [(p, min([n for n in far if n > p], default=max(far))) for p in near]
        losses += [(p - n + margin).clamp(min=0) for p, n in pairs]
    return torch.stack(losses).mean() if losses else anchors.new_zeros(())


def cross_entropy(cosines: Tensor, labels: list[int], scale: float, smoothing: float) -> Tensor:
    losses = []
    for row, label in zip(scale * cosines, labels, strict=True):
        target = (1 - smoothing) * row[label] + smoothing * row.mean()
        losses.append(row.exp().sum().log() - target)
    return torch.stack(losses).mean()


def arcface(cosines: Tensor, labels: list[int], margin: float, scale: float, smoothing: float) -> Tensor:
    moved = [c.acos() + margin for c in cosines[range(len(labels)), labels]]
    assert all(angle < math.pi for angle in moved)  # beyond, another formula goes on
    return cross_entropy(
        torch.stack(
            [
                torch.stack([angle.cos() if i == label else c for i, c in enumerate(row)])
                for row, label, angle in zip(cosines, labels, moved, strict=True)
            ]
        ),
        labels,
        scale,
        smoothing,
    )


def identity_loss(
    objective: ObjectiveConfig,
    embeddings: Tensor,
    others: Tensor,
    labels: list[int],
    directions: Tensor | None,
) -> tuple[Tensor, Values]:
    """The weighted losses, and each of them with the accuracy; `directions` are the head's weights."""
    terms: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "triplet": (
            objective.triplet,
            lambda: triplet(embeddings, others, labels, objective.margin, objective.mining),
        )
    }
    values: Values = {}
    if directions is not None:
        cosines = embeddings @ F.normalize(directions, dim=1).T
        o = objective
        terms["cross_entropy"] = (
            o.cross_entropy,
            lambda: cross_entropy(cosines, labels, o.scale, o.label_smoothing),
        )
        terms["arcface"] = (
            o.arcface,
            lambda: arcface(cosines, labels, o.arcface_margin, o.arcface_scale, o.label_smoothing),
        )
        right = [int(row.argmax()) == label for row, label in zip(cosines, labels, strict=True)]
        values["accuracy"] = torch.tensor(sum(right) / len(labels))
    loss = embeddings.new_zeros(())
    for name, (weight, term) in terms.items():
        if weight:
            values[name] = term()
            loss = loss + weight * values[name]
    return loss, values


def untargeted(real: Tensor, sparring: Tensor, labels: list[int]) -> Tensor:
    """How much nearer each sparring face is to its own identity's real faces than to the nearest other one,
    in units of the mean distance between real faces."""
    nearer = []
    for face, label in zip(sparring, labels, strict=True):
        cosines = [(face @ other, other_label) for other, other_label in zip(real, labels, strict=True)]
        own = torch.stack([cosine for cosine, other in cosines if other == label])
        others = torch.stack([cosine for cosine, other in cosines if other != label])
        nearer.append(own.mean() - others.max())
    return torch.stack(nearer).mean() / (1 - mean_cosine_of_pairs(real)).clamp(min=1e-3)


def targeted(sparring: Tensor, directions: Tensor, targets: list[int]) -> Tensor:
    """Squared distance to the direction of each face's target."""
    aims = F.normalize(directions, dim=1)[targets]
    return torch.stack([(a - b).square().sum() for a, b in zip(sparring, aims, strict=True)]).mean()


def recognized(embeddings: Tensor, real: Tensor, labels: list[int]) -> list[bool]:
    """Whether the nearest real face, but for the face itself, is of the same identity."""
    found = []
    for i, embedding in enumerate(embeddings):
        nearest = max((float((embedding @ other).detach()), j) for j, other in enumerate(real) if j != i)[1]
        found.append(labels[nearest] == labels[i])
    return found


def mean_cosine_of_pairs(embeddings: Tensor) -> Tensor:
    count = len(embeddings)
    pairs = [embeddings[i] @ embeddings[j] for i in range(count) for j in range(count) if i != j]
    return torch.stack(pairs).mean()
