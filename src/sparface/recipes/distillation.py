"""Distillation from the recognizer that a run started from.

The frozen original embeds the clean face, and the recognizer is to embed the varied one in the same way. So
it learns to recognize what it could not, such as covered faces, without forgetting what it could.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from sparface.models.batchnorm import plain_state
from sparface.objectives import contrast
from sparface.recipes.base import FaceBatch, Metrics, Recipe

TEACHER = "teacher"
"""Name of the original in `Recipe.frozen`, and so in checkpoints: it outlives the file that it came from."""


@dataclass(frozen=True)
class Lesson:
    """The teacher's embeddings [B,E] of the clean faces of all processes, with their labels and positions in
    the stream, int64 [B]."""

    embeddings: Tensor
    labels: Tensor
    positions: Tensor


def add_teacher(recipe: Recipe) -> None:
    """Give a recipe the teacher; its recognizer must not be split yet."""
    recipe.frozen[TEACHER] = copy.deepcopy(recipe.networks["recognizer"]).eval()


def begin_teacher(recipe: Recipe) -> None:
    """Give the teacher the weights that the recognizer starts from."""
    if TEACHER in recipe.frozen:
        recipe.frozen[TEACHER].load_state_dict(plain_state(recipe.networks["recognizer"].state_dict()))


@torch.no_grad()
def lesson(recipe: Recipe, batch: FaceBatch) -> Lesson:
    """Let the teacher embed the clean faces of a batch (collective)."""
    embeddings = recipe.frozen[TEACHER](batch.images / 255)
    return Lesson(*recipe.gather(embeddings, batch.labels, batch.positions))


def distances(given: Lesson, embeddings: Tensor, positions: Tensor) -> Tensor:
    """Cosine distances [b] from embeddings [b,E] to the teacher's of the faces at the same positions [b]."""
    cosines, itself = _compare(given, embeddings, positions)
    return 1 - (cosines * itself).sum(1)


def distillation_loss(
    given: Lesson, embeddings: Tensor, labels: Tensor, positions: Tensor, contrast_weight: float
) -> tuple[Tensor, Metrics]:
    """Return the mean cosine distance from embeddings [b,E] of varied faces to the teacher's of the same
    faces, plus the weighted `contrast` to its embeddings of other people, and both as metrics.

    `labels` and `positions` int64 [b] are those of the varied faces.
    """
    cosines, itself = _compare(given, embeddings, positions)
    distance = 1 - (cosines * itself).sum(1).mean()
    between = contrast(cosines, itself, labels[:, None] == given.labels)
    metrics = {"distillation": distance.detach(), "distillation_contrast": between.detach()}
    return distance + contrast_weight * between, metrics


def _compare(given: Lesson, embeddings: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [b,B] to the teacher's embeddings, and which of them are of the same face."""
    with torch.autocast(embeddings.device.type, enabled=False):  # it would round the cosines to bf16
        return embeddings @ given.embeddings.T, positions[:, None] == given.positions
