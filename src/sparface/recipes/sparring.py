"""Train the recognizer against the generator: sparring faces keep their source's identity.

`alternating` is the paper's step, two phases with a recognizer forward each; `shared` is one phase
that reuses one forward for both networks. From the same state both give the same gradients.
"""

from __future__ import annotations

import random
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
from sparface.randomness import normal
from sparface.recipes.base import (
    NOISE_STREAM,
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
    own: Tensor
    """bool [b,B], which of all real faces are of each face's identity."""
    itself: Tensor
    """bool [b,B], which of all real faces each face is."""
    real_cosines: Tensor | None
    """[b, identities], to the identity head's directions, where there is a head."""
    sparring_cosines: Tensor | None


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
        self.identities = identities
        self.aim = 1 + random.Random(config.training.seed).randrange(max(1, identities - 1))
        """From an identity to its target: so many further on, round the end."""

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
            return {
                "face": spar.source,
                "perturbation": (spar.perturbation * spar.mask + 1) / 2,
                "mask": spar.mask.expand_as(spar.source),
                "sparring": spar.face(),
                "whitened": viewable(whiten(spar.source)),
            }

    def _shared(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """One recognizer forward. The attack's gradient is handed to the generator at the whitened faces."""
        spar = self._spar(batch, self.networks["generator"])
        zero_sum, weight = self.config.objective.attack == "zero_sum", self.config.objective.attack_weight
        whitened = spar.made.whitened
        seen = (
            objectives.reverse_gradient(whitened, weight) if zero_sum else whitened.detach().requires_grad_()
        )
        embedded = self._embed(batch, self.networks["recognizer"], self.networks.get("head"), seen)
        loss, metrics = self._recognition(batch, embedded)
        extra, generator_metrics = self._regularise(spar)
        attack = -loss if zero_sum else self._attack(batch, embedded)
        generator_loss = weight * attack.detach() + extra.detach()
        total = loss + extra
        if not zero_sum:
            total = total + (whitened * self._gradient(weight * attack, seen)).sum()
        metrics |= generator_metrics | _generator_metrics(generator_loss, attack, embedded)
        return total, metrics

    def _generator_phase(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """The frozen recognizer judges; its statistics are updated in its own phase only."""
        spar = self._spar(batch, self.networks["generator"])
        recognizer = bare(self.networks["recognizer"])
        head = bare(self.networks["head"]) if "head" in self.networks else None
        with frozen_statistics(recognizer):
            embedded = self._embed(batch, recognizer, head, spar.made.whitened)
        if self.config.objective.attack == "zero_sum":
            attack = -self._recognition(batch, embedded)[0]
        else:
            attack = self._attack(batch, embedded)
        extra, metrics = self._regularise(spar)
        loss = self.config.objective.attack_weight * attack + extra
        return loss, metrics | _generator_metrics(loss, attack, embedded)

    def _recognizer_phase(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        generator = bare(self.networks["generator"])
        with torch.no_grad(), frozen_statistics(generator):
            spar = self._spar(batch, generator)
        recognizer, head = self.networks["recognizer"], self.networks.get("head")
        return self._recognition(batch, self._embed(batch, recognizer, head, spar.made.whitened))

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
        return normal(self.config.training.seed, batch.positions, sae.noise_shape, NOISE_STREAM)

    def _embed(
        self, batch: FaceBatch, recognizer: nn.Module, head: nn.Module | None, whitened: Tensor
    ) -> Embedded:
        with parts(recognizer, 2):
            embeddings = recognizer(whitened, whitened=True)
        real, sparring = embeddings.chunk(2)
        all_real, all_sparring = self.gather(torch.stack([real, sparring], 1)).unbind(1)
        cosines = (None, None) if head is None else head(embeddings).chunk(2)
        both = self.gather(torch.stack([batch.labels, batch.positions], 1))
        labels, positions = both.T.contiguous()
        own, itself = batch.labels[:, None] == labels, batch.positions[:, None] == positions
        return Embedded(real, sparring, all_real, all_sparring, labels, own, itself, *cosines)

    def _recognition(self, batch: FaceBatch, embedded: Embedded) -> tuple[Tensor, Metrics]:
        """The recognizer's loss: on real faces, plus the weighted one on sparring faces.

        The triplet loss of sparring faces takes their positives and negatives from the real faces.
        """
        real, sparring = embedded.real_cosines, embedded.sparring_cosines
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

    def _attack(self, batch: FaceBatch, embedded: Embedded) -> Tensor:
        """What the generator minimises, but for `zero_sum`."""
        if embedded.sparring_cosines is not None and self.config.objective.attack == "targeted":
            return objectives.targeted(embedded.sparring_cosines, self.target(batch.labels))
        with torch.autocast(batch.labels.device.type, enabled=False):
            return objectives.untargeted(embedded.sparring, embedded.all_real, embedded.own)

    def target(self, labels: Tensor) -> Tensor:
        """The identity that each identity is made to look like: always the same, so that the generator,
        which is not told, can learn it. All are another's target once."""
        return (labels + self.aim) % self.identities

    def _regularise(self, spar: Sparring) -> tuple[Tensor, Metrics]:
        """The weighted norm of ε·δ·m and mask area."""
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
    """How far sparring faces move from their sources, and how many are no longer recognized."""
    real, sparring, every = embedded.real.detach(), embedded.sparring.detach(), embedded.all_real.detach()
    with torch.autocast(real.device.type, enabled=False):
        fooled = objectives.changed_decisions(real, sparring, every, embedded.own, embedded.itself)
        shift = 1 - (real * sparring).sum(1).mean()
    return {"generator_loss": loss.detach(), "attack": attack.detach(), "shift": shift, "fooled": fooled}
