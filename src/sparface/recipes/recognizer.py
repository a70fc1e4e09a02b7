"""Train the recognizer alone with a weighted sum of triplet loss, cross-entropy and ArcFace."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sparface.config import Config, number
from sparface.errors import UserError
from sparface.files import sha256
from sparface.kernels.triplet import Others, triplet
from sparface.kernels.whiten import whiten
from sparface.models.batchnorm import plain_state
from sparface.models.dropout import dropping
from sparface.models.recognizer import (
    FACENET,
    LEAST_SIZE,
    ONNX,
    SMALL,
    IdentityHead,
    Recognizer,
    RecognizerConfig,
    build_recognizer,
    check_backbone,
)
from sparface.models.weights import PACKAGED, PUBLISHED
from sparface.objectives import arcface, cross_entropy, mean_pairwise_cosine
from sparface.recipes.base import (
    FaceBatch,
    Finished,
    Metrics,
    Phase,
    Recipe,
    Role,
    Rule,
    faces,
    rows_of,
    viewable,
)
from sparface.recipes.distillation import add_teacher, begin_teacher, distillation_loss, lesson

CAPTIONS = {
    "loss": "total loss",
    "triplet": "triplet loss",
    "cross_entropy": "cross-entropy over identities",
    "arcface": "ArcFace loss",
    "accuracy": "accuracy on training batches",
    "embedding_cosine": "mean cosine between embeddings",
    "distillation": "distance to the original's embedding",
    "distillation_contrast": "cross-entropy of finding the face by the original's embedding",
}


def _build(config: Config) -> Recognizer:
    return build_recognizer(config.block(RecognizerConfig), config.training.start_from, config.size)


def _backbone(network: nn.Module) -> dict[str, Tensor]:
    assert isinstance(network, Recognizer)
    return network.plain_state()


def _of_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published FaceNets have a classifier, `logits`, which is left out."""
    return {f"backbone.{key}": value for key, value in weights.items() if not key.startswith("logits.")}


FINISHED_RECOGNIZER = Finished("recognizer", _build, plain_state, _backbone, _of_backbone)
"""Drops the BatchNorm statistics of sparring faces; exports the weights in the backbone's own layout."""


@dataclass
class ObjectiveConfig:
    """The recognizer's losses and their weights. A weight of 0 disables the loss."""

    triplet: float = number(1.0)
    """Weight of the triplet loss on L2-normalised embeddings."""
    margin: float = number(0.2)
    """Triplet margin, on squared Euclidean distances."""
    mining: Literal["batch_hard", "semi_hard"] = "semi_hard"
    """Which negatives the triplet loss uses; it mines over the batches of all ranks."""
    cross_entropy: float = number(1.0)
    """Weight of the softmax cross-entropy over identities."""
    scale: float = number(32.0)
    """Scale of the cross-entropy's logits, which are cosines."""
    arcface: float = number(0.0)
    """Weight of the ArcFace loss over identities."""
    arcface_margin: float = number(0.5)
    """ArcFace's additive angular margin, in radians."""
    arcface_scale: float = number(32.0)
    """Scale of ArcFace's logits."""
    label_smoothing: float = number(0.0, most=1)
    """Share of each target that cross-entropy and ArcFace spread evenly over all identities."""
    distillation: float = number(0.0)
    """Weight of the distance to how the recognizer in `training.start_from` embeds the face before it is
    varied (1 − cosine). Needs no identities: the other losses may be 0."""
    distillation_contrast: float = number(0.2)
    """With distillation: weight, in its loss, of the cross-entropy of finding the face among the batch's
    other people."""


class RecognizerRecipe(Recipe):
    """One phase that updates the recognizer and, if a loss needs it, the identity head."""

    blocks: ClassVar[Mapping[str, type]] = {"recognizer": RecognizerConfig, "objective": ObjectiveConfig}
    identities = 2
    finished: ClassVar[Mapping[Role, Finished]] = {"recognizer": FINISHED_RECOGNIZER}
    captions: ClassVar[Mapping[str, Mapping[str, str]]] = {"Recognizer": CAPTIONS}
    pictures: ClassVar[Mapping[str, str]] = {"face": "face", "whitened": "whitened face"}
    headline = ("loss", "accuracy")

    def __init__(self, config: Config, identities: int) -> None:
        super().__init__(config, identities)
        self.objective = config.block(ObjectiveConfig)
        self.networks = recognizer_networks(config, identities)
        if self.objective.distillation > 0:
            add_teacher(self)

    def begin(self, start: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        super().begin(start, source)
        begin_teacher(self)

    @classmethod
    def check(cls, config: Config) -> None:
        recognizer, losses = config.block(RecognizerConfig), config.block(ObjectiveConfig)
        check_backbone(recognizer)
        least = LEAST_SIZE.get(recognizer.backbone, 0)
        if config.size < least:
            raise UserError(
                f"size: {config.size} is too small for {recognizer.backbone}; use {least} or more"
            )
        _check_start(recognizer.backbone, config.training.start_from)
        if losses.triplet == losses.cross_entropy == losses.arcface == losses.distillation == 0:
            raise UserError(
                "objective.triplet: 0, like objective.cross_entropy and objective.arcface; set one above 0"
            )
        if losses.distillation > 0 and not config.training.start_from:
            raise UserError("training.start_from: is empty; give the recognizer for objective.distillation")

    @classmethod
    def identity(cls, config: Config) -> dict[str, Any]:
        recognizer = config.block(RecognizerConfig)
        found: dict[str, Any] = {"recognizer": [recognizer.backbone, recognizer.embedding]}
        if recognizer.backbone == ONNX:
            found["onnx"] = sha256(Path(config.training.start_from))
        return found

    def rules(self) -> list[Rule]:
        return [collapse_rule(self.config)]

    def phases(self) -> list[Phase]:
        return [Phase("recognizer", tuple(self.networks), self._loss)]

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        x = faces(self.config, batch)
        return {"face": x, "whitened": viewable(whiten(x))}

    def _loss(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        plain = self.config.data.variation == "none"  # whitening then reads the bytes directly
        recognizer = self.networks["recognizer"]
        with dropout(self.config, recognizer, batch.positions):
            embeddings = recognizer(batch.images if plain else faces(self.config, batch))
        cosines = self.networks["head"](embeddings) if "head" in self.networks else None
        everyone, labels, positions = self.gather(embeddings, batch.labels, batch.positions)
        others = Others(everyone, labels, rows_of(batch.positions, positions))
        loss, metrics = identity_loss(self.objective, embeddings, batch.labels, cosines, others)
        if self.objective.distillation > 0:
            distance, more = distillation_loss(
                lesson(self, batch),
                embeddings,
                batch.labels,
                batch.positions,
                self.objective.distillation_contrast,
            )
            loss, metrics = loss + self.objective.distillation * distance, metrics | more
        collapse = mean_pairwise_cosine(everyone.detach())
        return loss, {"loss": loss.detach(), **metrics, "embedding_cosine": collapse}


def recognizer_networks(config: Config, identities: int) -> dict[str, nn.Module]:
    """Build the recognizer and, if cross-entropy or ArcFace is on, its identity head."""
    recognizer = config.block(RecognizerConfig)
    networks: dict[str, nn.Module] = {"recognizer": _build(config)}
    if has_head(config):
        networks["head"] = IdentityHead(recognizer.embedding, identities)
    return networks


def dropout(config: Config, recognizer: nn.Module, positions: Tensor) -> AbstractContextManager[None]:
    """Context in which the recognizer drops features as configured (see `dropping`)."""
    p = config.block(RecognizerConfig).dropout
    return dropping(recognizer, config.training.seed, positions) if p else nullcontext()


def _check_start(backbone: str, start: str) -> None:
    if backbone == ONNX and not start:
        raise UserError(f"training.start_from: is empty; give the ONNX file for recognizer.backbone: {ONNX}")
    if backbone != ONNX and start.endswith(".onnx"):
        raise UserError(f"recognizer.backbone: {backbone} is not allowed with {start}; must be {ONNX}")
    for names, needed in ((PUBLISHED, FACENET), (PACKAGED, SMALL)):
        if backbone != needed and start in names:
            raise UserError(f"recognizer.backbone: {backbone} is not allowed with {start}; must be {needed}")


def has_head(config: Config) -> bool:
    """Whether cross-entropy or ArcFace is on; both need an identity head."""
    objective = config.block(ObjectiveConfig)
    return objective.cross_entropy > 0 or objective.arcface > 0


def identity_loss(
    objective: ObjectiveConfig,
    embeddings: Tensor,
    labels: Tensor,
    cosines: Tensor | None,
    others: Others,
) -> tuple[Tensor, Metrics]:
    """Return the weighted sum of the losses, and each loss as a metric.

    `embeddings` [b,E], `labels` [b] and `cosines` [b, identities] are this process's; `others` are the faces
    of all processes, among which the triplet loss mines. The means over the processes are the losses of all.
    """
    weighted: list[Tensor] = [embeddings.new_zeros(())]
    metrics: Metrics = {}

    def add(name: str, weight: float, value: Tensor) -> None:
        weighted.append(weight * value)
        metrics[name] = value.detach()

    if objective.triplet > 0:
        value = triplet(embeddings, labels, objective.margin, objective.mining, others)
        add("triplet", objective.triplet, value)
    if cosines is not None and objective.cross_entropy > 0:
        value = cross_entropy(cosines, labels, objective.scale, objective.label_smoothing)
        add("cross_entropy", objective.cross_entropy, value)
    if cosines is not None and objective.arcface > 0:
        margin, scale = objective.arcface_margin, objective.arcface_scale
        value = arcface(cosines, labels, margin, scale, objective.label_smoothing)
        add("arcface", objective.arcface, value)
    if cosines is not None:
        metrics["accuracy"] = (cosines.detach().argmax(1) == labels).to(torch.float32).mean()
    return torch.stack(weighted).sum(), metrics


def collapse_rule(config: Config) -> Rule:
    """Return the rule that detects collapse: all embeddings point in the same direction."""
    message = "embeddings collapsed: mean pairwise cosine {value:.4f} is over {bound:g}"
    return Rule(
        "collapse", "embedding_cosine", config.watch.collapse, message, above=config.watch.collapse_cosine
    )
