"""Losses and metrics of real and sparring faces that were embedded together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sparface import objectives
from sparface.kernels.triplet import Others
from sparface.recipes.base import Gather, Metrics, rows_of
from sparface.recipes.distillation import Lesson, distances, distillation_loss
from sparface.recipes.recognizer import ObjectiveConfig, identity_loss
from sparface.recipes.slots import Faces, Slots
from sparface.sparring.terms import Embedded


def separate(slots: Slots, embeddings: Tensor, cosines: Tensor | None, gather: Gather) -> Embedded:
    """Separate the embeddings [r+s,E] of real faces and of the sparring faces, and gather those of all
    processes; `cosines` [r+s, identities] are those of the identity head, if there is one."""
    count = len(slots.real.labels)
    gathered = gather(embeddings, slots.labels, slots.positions)
    processes = [every.view(-1, len(embeddings), *every.shape[1:]) for every in gathered]
    (all_real, real_labels, real_positions), (all_sparring, labels, positions) = (
        [every[:, kind].flatten(0, 1) for every in processes] for kind in (slice(count), slice(count, None))
    )
    split = (None, None) if cosines is None else (cosines[:count], cosines[count:])
    return Embedded(
        real=embeddings[:count],
        sparring=embeddings[count:],
        real_labels=slots.real.labels,
        labels=slots.source.labels,
        all_real=Others(all_real, real_labels, rows_of(slots.real.positions, real_positions)),
        all_sparring=Others(all_sparring, labels, rows_of(slots.source.positions, positions)),
        own=slots.source.labels[:, None] == real_labels,
        itself=slots.source.positions[:, None] == real_positions,
        real_cosines=split[0],
        sparring_cosines=split[1],
    )


def added_loss(objective: ObjectiveConfig, weight: float, embedded: Embedded) -> tuple[Tensor, Metrics]:
    """Return the recognizer's loss on real faces plus `weight` times that on as many sparring faces.

    The triplet loss of sparring faces takes positives and negatives from the real faces.
    """
    on_real, metrics = identity_loss(
        objective, embedded.real, embedded.real_labels, embedded.real_cosines, embedded.all_real
    )
    others = embedded.all_real._replace(itself=None)
    on_sparring, more = identity_loss(
        objective, embedded.sparring, embedded.labels, embedded.sparring_cosines, others
    )
    return on_real + weight * on_sparring, metrics | {f"sparring_{n}": value for n, value in more.items()}


def mixed_loss(objective: ObjectiveConfig, embedded: Embedded) -> tuple[Tensor, Metrics]:
    """Return the recognizer's loss on all faces alike."""
    cosines = None
    if embedded.real_cosines is not None and embedded.sparring_cosines is not None:
        cosines = torch.cat([embedded.real_cosines, embedded.sparring_cosines])
    loss, metrics = identity_loss(
        objective,
        torch.cat([embedded.real, embedded.sparring]),
        torch.cat([embedded.real_labels, embedded.labels]),
        cosines,
        _together(embedded.all_real, embedded.all_sparring),
    )
    if embedded.real_cosines is not None:
        metrics["accuracy"] = _named(embedded.real_cosines, embedded.real_labels).mean()
        metrics["sparring_accuracy"] = right(embedded).mean()
    return loss, metrics


@torch.no_grad()
def right(embedded: Embedded) -> Tensor:
    """Whether each sparring face [s] is named rightly by the head, or, without a head, whether its nearest
    real face has the same identity; float32."""
    if embedded.sparring_cosines is not None:
        return _named(embedded.sparring_cosines, embedded.labels)
    with torch.autocast(embedded.labels.device.type, enabled=False):
        found = objectives.recognized(
            embedded.sparring, embedded.all_real.embeddings, embedded.own, embedded.itself
        )
    return found.to(torch.float32)


def taught_loss(
    objective: ObjectiveConfig, lesson: Lesson, embedded: Embedded, positions: Tensor
) -> tuple[Tensor, Metrics]:
    """Return the weighted distillation loss of real and sparring faces, and its parts; `positions` [r+s] are
    theirs."""
    embeddings = torch.cat([embedded.real, embedded.sparring])
    labels = torch.cat([embedded.real_labels, embedded.labels])
    contrast = objective.distillation_contrast
    loss, metrics = distillation_loss(lesson, embeddings, labels, positions, contrast)
    return objective.distillation * loss, metrics


def each_loss(objective: ObjectiveConfig, embedded: Embedded, source: Faces, lesson: Lesson | None) -> Tensor:
    """Return the recognizer's loss on each sparring face [s], made of `source`, without the triplet loss.

    With distillation it includes the distance to the teacher's embedding. Without it and without a head,
    return the negative margin by which a face is nearer to its own identity than to any other.
    """
    cosines, labels, taught = embedded.sparring_cosines, embedded.labels, None
    if lesson is not None:
        taught = objective.distillation * distances(lesson, embedded.sparring, source.positions)
    if cosines is None and taught is not None:
        return taught
    with torch.autocast(labels.device.type, enabled=False):
        if cosines is None:
            return -objectives.margins(embedded.sparring, embedded.all_real.embeddings, embedded.own)
        further = objectives.arcface_cosines(cosines, labels, objective.arcface_margin)
        plain = _each_cross_entropy(objective.scale * cosines, labels, objective.label_smoothing)
        angular = _each_cross_entropy(objective.arcface_scale * further, labels, objective.label_smoothing)
        named = objective.cross_entropy * plain + objective.arcface * angular
        return named if taught is None else named + taught


def _each_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


@torch.no_grad()
def success(embedded: Embedded, *, added: bool, paired: bool) -> Metrics:
    """Metrics of how much harder sparring faces are to recognize than real ones.

    If they were `added`, each is compared with its source; otherwise with real faces of the same identity,
    and if there are two or more of each identity (`paired`), these also with each other.
    """
    real, sparring, every = embedded.real, embedded.sparring, embedded.all_real.embeddings
    own, itself = embedded.own, embedded.itself
    with torch.autocast(real.device.type, enabled=False):
        if added:
            fooled = objectives.changed_decisions(real, sparring, every, own, itself)
            return {"shift": 1 - (real * sparring).sum(1).mean(), "fooled": fooled}
        found = objectives.recognized(sparring, every, own, itself).to(torch.float32)
        near = ((sparring @ every.T * own).sum(1) / own.sum(1)).mean()
        metrics = {"distance": 1 - near, "unrecognized": 1 - found.mean()}
        if paired:
            related = embedded.real_labels[:, None] == embedded.all_real.labels
            others = (real @ every.T * related).sum(1) - 1  # without the face itself, whose cosine is 1
            metrics["excess"] = (others / (related.sum(1) - 1)).mean() - near
        return metrics


@torch.no_grad()
def ranked(damage: Tensor, gather: Gather) -> Tensor:
    """Replace the damage [s] of this process by its rank among that of all processes, scaled to mean 0 and
    standard deviation 1. The loss itself has rare large values that would drown the others."""
    (everywhere,) = gather(damage)
    lower = (everywhere < damage[:, None]).to(damage.dtype) + (everywhere <= damage[:, None])
    return (lower.mean(1) - 1) * math.sqrt(3)


def _together(a: Others, b: Others) -> Others:
    assert a.itself is not None and b.itself is not None
    rows = torch.cat([a.itself, len(a.labels) + b.itself])
    return Others(torch.cat([a.embeddings, b.embeddings]), torch.cat([a.labels, b.labels]), rows)


def _named(cosines: Tensor, labels: Tensor) -> Tensor:
    return (cosines.detach().argmax(1) == labels).to(torch.float32)
