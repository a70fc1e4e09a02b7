"""Train the recognizer against the generator: sparring faces keep their source's identity.

`alternating` is the paper's step, two phases with a recognizer forward each; `shared` is one phase
that reuses one forward for both networks. From the same state both give the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparface import objectives
from sparface.config import Config
from sparface.kernels.synthesize import Synthesized, synthesize_whitened
from sparface.kernels.whiten import input_dtype, whiten
from sparface.models.batchnorm import frozen_statistics, parts, split_batchnorm
from sparface.models.sae import SAE, build_generator, synthesize
from sparface.randomness import normal, uniform
from sparface.recipes.base import (
    NOISE_STREAM,
    TARGET_STREAM,
    FaceBatch,
    Metrics,
    Phase,
    alone,
    bare,
    evaluating,
    faces,
    unscaled,
    viewable,
)
from sparface.recipes.recognizer import identity_loss, recognizer_networks


@dataclass(frozen=True)
class Sparring:
    """Faces [b,3,H,W], the generator's outputs for them, and what was made of both."""

    source: Tensor
    perturbation: Tensor
    mask: Tensor
    epsilon: float
    made: Synthesized

    def face(self) -> Tensor:
        """The sparring faces before whitening."""
        return synthesize(self.source, self.perturbation, self.mask, self.epsilon)


@dataclass(frozen=True)
class Embedded:
    """Unit embeddings of real and sparring faces: this process's [b,E] and everyone's [B,E]."""

    real: Tensor
    sparring: Tensor
    all_real: Tensor
    all_sparring: Tensor
    all_labels: Tensor


class SparringRecipe:
    """Networks `recognizer`, `head` (if a loss over identities is on) and `generator`."""

    def __init__(self, config: Config, identities: int) -> None:
        self.config = config
        self.networks: dict[str, nn.Module] = recognizer_networks(config, identities)
        if config.training.adversarial_batchnorm == "split":
            split_batchnorm(self.networks["recognizer"])
        self.recognition = tuple(self.networks)
        self.networks["generator"] = build_generator(config.generator)
        self.gather: Callable[[Tensor], Tensor] = alone
        self.scale: Callable[[Tensor], Tensor] = unscaled

    def phases(self) -> list[Phase]:
        if self.config.training.sparring_update == "shared":
            return [Phase("sparring", ("generator", *self.recognition), self._shared)]
        return [
            Phase("generator", ("generator",), self._generator_phase),
            Phase("recognizer", self.recognition, self._recognizer_phase),
        ]

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        generator = bare(self.networks["generator"])
        with evaluating(generator):
            spar = self._spar(batch, generator)
            epsilon = self.config.generator.epsilon
            change = spar.perturbation.clamp(-epsilon, epsilon) * spar.mask
            return {
                "face": spar.source,
                "perturbation": change / max(2 * epsilon, 1e-12) + 0.5,
                "mask": spar.mask.expand_as(spar.source),
                "sparring": spar.face(),
                "whitened": viewable(whiten(spar.source)),
            }

    def _shared(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """One recognizer forward. The attack's gradient is handed to the generator at the whitened faces."""
        spar = self._spar(batch, self.networks["generator"])
        kind, weight = self.config.objective.attack, self.config.objective.attack_weight
        whitened = spar.made.whitened
        seen = (
            objectives.reverse_gradient(whitened, weight)
            if kind == "zero_sum"
            else whitened.detach().requires_grad_(kind != "image")
        )
        embedded = self._embed(batch, self.networks["recognizer"], seen)
        loss, metrics = self._recognition(batch, embedded, self.networks.get("head"))
        extra, generator_metrics = self._regularise(spar)
        attack = -loss if kind == "zero_sum" else self._attack(batch, embedded, spar)
        generator_loss = weight * attack.detach() + extra.detach()
        total = loss + extra
        if kind == "image":  # it does not look at embeddings
            total = total + weight * attack
        elif kind != "zero_sum":
            total = total + (whitened * self._gradient(weight * attack, seen)).sum()
        metrics |= generator_metrics | _generator_metrics(generator_loss, attack, embedded)
        return total, metrics

    def _generator_phase(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """The frozen recognizer judges; its statistics are updated in its own phase only."""
        spar = self._spar(batch, self.networks["generator"])
        recognizer = bare(self.networks["recognizer"])
        with frozen_statistics(recognizer):
            embedded = self._embed(batch, recognizer, spar.made.whitened)
        if self.config.objective.attack == "zero_sum":
            head = self.networks.get("head")
            attack = -self._recognition(batch, embedded, None if head is None else bare(head))[0]
        else:
            attack = self._attack(batch, embedded, spar)
        extra, metrics = self._regularise(spar)
        loss = self.config.objective.attack_weight * attack + extra
        return loss, metrics | _generator_metrics(loss, attack, embedded)

    def _recognizer_phase(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        generator = bare(self.networks["generator"])
        with torch.no_grad(), frozen_statistics(generator):
            spar = self._spar(batch, generator)
        embedded = self._embed(batch, self.networks["recognizer"], spar.made.whitened)
        return self._recognition(batch, embedded, self.networks.get("head"))

    def _spar(self, batch: FaceBatch, generator: nn.Module) -> Sparring:
        x, epsilon = faces(self.config, batch), self.config.generator.epsilon
        perturbation, mask = generator(x, self._noise(batch, generator))
        made = synthesize_whitened(x, perturbation, mask, epsilon, input_dtype(x))
        return Sparring(x, perturbation, mask, epsilon, made)

    def _noise(self, batch: FaceBatch, generator: nn.Module) -> Tensor | None:
        if self.config.generator.noise == 0:
            return None
        sae = bare(generator)
        assert isinstance(sae, SAE)
        height, width = batch.images.shape[-2:]
        shape = sae.bottleneck_shape(height, width)
        return normal(self.config.training.seed, batch.positions, shape, NOISE_STREAM)

    def _embed(self, batch: FaceBatch, recognizer: nn.Module, whitened: Tensor) -> Embedded:
        with parts(recognizer, 2):
            embeddings = recognizer(whitened, whitened=True)
        real, sparring = embeddings.chunk(2)
        all_real, all_sparring = self.gather(torch.stack([real, sparring], 1)).unbind(1)
        return Embedded(real, sparring, all_real, all_sparring, self.gather(batch.labels))

    def _recognition(
        self, batch: FaceBatch, embedded: Embedded, head: nn.Module | None
    ) -> tuple[Tensor, Metrics]:
        """The recognizer's loss: on real faces, plus the weighted one on sparring faces.

        The triplet loss of sparring faces takes their positives and negatives from the real faces.
        """
        real = sparring = None
        if head is not None:
            real, sparring = head(torch.cat([embedded.real, embedded.sparring])).chunk(2)
        objective, labels, all_labels = self.config.objective, batch.labels, embedded.all_labels
        with torch.autocast(labels.device.type, enabled=False):
            on_real, metrics = identity_loss(objective, embedded.all_real, all_labels, real, labels)
            on_sparring, more = identity_loss(
                objective, embedded.all_sparring, all_labels, sparring, labels, against=embedded.all_real
            )
        loss = on_real + objective.sparring * on_sparring
        metrics |= {f"sparring_{name}": value for name, value in more.items()}
        collapse = objectives.mean_pairwise_cosine(embedded.all_real.detach())
        return loss, {"loss": loss.detach(), **metrics, "embedding_cosine": collapse}

    def _attack(self, batch: FaceBatch, embedded: Embedded, spar: Sparring) -> Tensor:
        """What the generator minimises, but for `zero_sum`."""
        kind = self.config.objective.attack
        if kind == "untargeted":
            return objectives.untargeted(embedded.real, embedded.sparring)
        target, valid = self._targets(batch, embedded.all_labels)
        if kind == "targeted":
            return objectives.targeted(embedded.sparring, embedded.all_real[target], valid)
        images = self.gather(batch.images)[target].to(spar.source.dtype) / 255
        return objectives.image(spar.face(), images, valid)

    def _targets(self, batch: FaceBatch, all_labels: Tensor) -> tuple[Tensor, Tensor]:
        """For each face, a face of another identity in the whole batch: indices [b], and if there is one."""
        drawn = uniform(self.config.training.seed, batch.positions, len(all_labels), TARGET_STREAM)
        other = all_labels[None, :] != batch.labels[:, None]
        return torch.where(other, drawn, -1.0).argmax(1), other.any(1)

    def _regularise(self, spar: Sparring) -> tuple[Tensor, Metrics]:
        """The weighted norm of δ·m and mask area.

        The norm is of δ before the clamp: it is what pulls δ back to where the clamp passes gradients.
        """
        objective = self.config.objective
        norm, area = spar.made.norm.mean(), spar.made.area.mean()
        metrics = {
            "perturbation_norm": norm.detach(),
            "mask_mean": area.detach(),
            "perturbation_mean": spar.made.applied.mean(),
        }
        return objective.perturbation_weight * norm + objective.mask_weight * area, metrics

    def _gradient(self, loss: Tensor, at: Tensor) -> Tensor:
        """d loss / d at, keeping the graph; scaled on the way as the step's own gradients are. Where that
        overflows under fp16 the step is dropped and the scale falls."""
        scale = self.scale(loss.new_ones(()))
        (gradient,) = torch.autograd.grad(loss * scale, at, retain_graph=True)
        return gradient / scale


def _generator_metrics(loss: Tensor, attack: Tensor, embedded: Embedded) -> Metrics:
    cosine = (embedded.real * embedded.sparring).sum(1).mean()
    return {
        "generator_loss": loss.detach(),
        "attack": attack.detach(),
        "shift": 1 - cosine.detach(),
    }
