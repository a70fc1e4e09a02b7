"""Train the recognizer alone: triplet loss, cross-entropy and ArcFace, each by its weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparface.config import Config, ObjectiveConfig
from sparface.kernels.triplet import triplet
from sparface.kernels.whiten import whiten
from sparface.models.recognizer import IdentityHead, build_recognizer
from sparface.objectives import arcface, cross_entropy, mean_pairwise_cosine
from sparface.recipes.base import FaceBatch, Metrics, Phase, alone, faces, unscaled, viewable


class RecognizerRecipe:
    """One phase that updates the recognizer and its identity head, if it has one."""

    def __init__(self, config: Config, identities: int) -> None:
        self.config = config
        self.networks: dict[str, nn.Module] = recognizer_networks(config, identities)
        self.gather: Callable[[Tensor], Tensor] = alone
        self.scale: Callable[[Tensor], Tensor] = unscaled

    def phases(self) -> list[Phase]:
        return [Phase("recognizer", tuple(self.networks), self._loss)]

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        x = faces(self.config, batch)
        return {"face": x, "whitened": viewable(whiten(x))}

    def _loss(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        plain = self.config.data.augment == "none"  # then bytes are whitened in one pass
        embeddings = self.networks["recognizer"](batch.images if plain else faces(self.config, batch))
        cosines = self.networks["head"](embeddings) if "head" in self.networks else None
        everyone = self.gather(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            loss, metrics = identity_loss(
                self.config.objective, everyone, self.gather(batch.labels), cosines, batch.labels
            )
        collapse = mean_pairwise_cosine(everyone.detach())
        return loss, {"loss": loss.detach(), **metrics, "embedding_cosine": collapse}


def recognizer_networks(config: Config, identities: int) -> dict[str, nn.Module]:
    """The recognizer and, if a loss over identities is on, its head."""
    networks: dict[str, nn.Module] = {"recognizer": build_recognizer(config.recognizer)}
    if config.objective.cross_entropy > 0 or config.objective.arcface > 0:
        networks["head"] = IdentityHead(config.recognizer.embedding, identities)
    return networks


def identity_loss(
    objective: ObjectiveConfig,
    everyone: Tensor,
    labels_of_all: Tensor,
    cosines: Tensor | None,
    labels: Tensor,
    against: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """The weighted losses of embeddings, and each of them as a metric.

    `everyone` [B,E] and `labels_of_all` are gathered (the triplet loss mines over all processes),
    `cosines` [b, identities] and `labels` are this process's; `against` as in `triplet`.
    """
    weighted: list[Tensor] = [everyone.new_zeros(())]
    metrics: Metrics = {}

    def add(name: str, weight: float, value: Tensor) -> None:
        weighted.append(weight * value)
        metrics[name] = value.detach()

    if objective.triplet > 0:
        value = triplet(everyone, labels_of_all, objective.margin, objective.mining, against)
        add("triplet", objective.triplet, value)
    if cosines is not None and objective.cross_entropy > 0:
        add("cross_entropy", objective.cross_entropy, cross_entropy(cosines, labels, objective.arcface_scale))
    if cosines is not None and objective.arcface > 0:
        value = arcface(cosines, labels, objective.arcface_margin, objective.arcface_scale)
        add("arcface", objective.arcface, value)
    if cosines is not None:
        metrics["accuracy"] = (cosines.detach().argmax(1) == labels).to(torch.float32).mean()
    return torch.stack(weighted).sum(), metrics
