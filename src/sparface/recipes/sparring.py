"""Train the recognizer against the generator. Sparring faces keep the label of their source.

`alternating` is the paper's step: two phases, each with a recognizer forward. `shared` is a single phase
that uses one forward for both networks. From the same state both compute the same gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sparface import objectives
from sparface.attacks.terms import TERMS, Attack, Embedded
from sparface.config import Config, number
from sparface.kernels.synthesize import Synthesized, synthesize, synthesize_whitened
from sparface.kernels.whiten import input_dtype, whiten
from sparface.models.batchnorm import frozen_statistics, parts, split_batchnorm
from sparface.models.sae import SAE, GeneratorConfig, build_generator
from sparface.randomness import normal
from sparface.recipes.base import (
    NOISE_STREAM,
    FaceBatch,
    Finished,
    Metrics,
    Phase,
    Recipe,
    Role,
    Rule,
    bare,
    evaluating,
    faces,
    viewable,
)
from sparface.recipes.generator_watch import GeneratorWatchConfig, generator_rules
from sparface.recipes.recognizer import (
    CAPTIONS,
    FINISHED_RECOGNIZER,
    ObjectiveConfig,
    RecognizerRecipe,
    collapse_rule,
    dropout,
    has_head,
    identity_loss,
    recognizer_networks,
)

SPARRING_CAPTIONS = {
    "sparring_triplet": "triplet loss, sparring faces",
    "sparring_cross_entropy": "cross-entropy, sparring faces",
    "sparring_arcface": "ArcFace loss, sparring faces",
    "sparring_accuracy": "accuracy, sparring faces",
}
GENERATOR_CAPTIONS = {
    "generator_loss": "total loss of the generator",
    "attack": "attack term",
    "perturbation_norm": "Frobenius norm of the change",
    "perturbation_mean": "mean change of a pixel, in [0, 1] face units",
    "mask_mean": "mask area",
    "shift": "shift of the embedding (cosine distance)",
    "fooled": "share of faces whose sparring faces are no longer recognized",
}


@dataclass
class SparringConfig:
    """How the recognizer and the generator train against each other."""

    weight: float = number(1.0)
    """Weight of the recognizer's losses on sparring faces, relative to those on real faces (1)."""
    attack: Attack = "untargeted"
    """The generator's aim. `untargeted`: make a face nearer to another identity in the batch than to its
    own. `targeted`: match one fixed other identity (needs cross_entropy or arcface). `zero_sum`: maximise
    the recognizer's loss."""
    attack_weight: float = number(1.0)
    """Weight of the attack term."""
    perturbation_weight: float = number(1e-3)
    """Weight of the Frobenius norm of the change, before faces are clipped to [0, 1]."""
    mask_weight: float = number(0.1)
    """Weight of the mean mask area."""
    generator_learning_rate: float = number(2e-3)
    """The generator's learning rate; the generator has to keep up with the recognizer."""
    update: Literal["alternating", "shared"] = "shared"
    """`alternating` runs two recognizer forwards, as in the paper; `shared` uses one for both networks."""
    batchnorm: Literal["shared", "split"] = "split"
    """`split` keeps separate BatchNorm statistics for sparring faces (AdvProp)."""


@dataclass(frozen=True)
class Sparring:
    """Source faces [b,3,H,W], the generator's outputs for them, and the resulting sparring faces."""

    source: Tensor
    perturbation: Tensor
    mask: Tensor
    epsilon: float
    made: Synthesized

    def face(self) -> Tensor:
        """Return the sparring faces [b,3,H,W] before whitening."""
        return synthesize(self.source, self.perturbation, self.mask, self.epsilon)


class SparringRecipe(Recipe):
    """Trains the networks `recognizer`, `head` (if cross-entropy or ArcFace is on) and `generator`."""

    blocks: ClassVar[Mapping[str, type]] = {
        **RecognizerRecipe.blocks,
        "generator": GeneratorConfig,
        "sparring": SparringConfig,
        "generator_watch": GeneratorWatchConfig,
    }
    identities = 2
    finished: ClassVar[Mapping[Role, Finished]] = {
        "recognizer": FINISHED_RECOGNIZER,
        "generator": Finished("generator", lambda config: build_generator(config.block(GeneratorConfig))),
    }
    captions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "Recognizer": CAPTIONS | SPARRING_CAPTIONS,
        "Generator": GENERATOR_CAPTIONS,
    }
    pictures: ClassVar[Mapping[str, str]] = {
        "face": "face",
        "perturbation": "perturbation δ·m",
        "mask": "mask m",
        "sparring": "sparring face",
        "whitened": "whitened face",
    }
    headline = ("loss", "accuracy", "shift", "fooled")

    def __init__(self, config: Config, identities: int) -> None:
        super().__init__(config, identities)
        self.objective, self.sparring = config.block(ObjectiveConfig), config.block(SparringConfig)
        self.networks = recognizer_networks(config, identities)
        if self.sparring.batchnorm == "split":
            split_batchnorm(self.networks["recognizer"])
        self.recognition = tuple(self.networks)
        self.networks["generator"] = build_generator(config.block(GeneratorConfig))
        self.term = TERMS[self.sparring.attack](config, identities)

    @classmethod
    def check(cls, config: Config) -> None:
        RecognizerRecipe.check(config)
        TERMS[config.block(SparringConfig).attack].check(config, head=has_head(config))

    @classmethod
    def identity(cls, config: Config) -> dict[str, Any]:
        generator = config.block(GeneratorConfig)
        form = [SAE.FORM, generator.width, generator.blocks]
        return {**RecognizerRecipe.identity(config), "generator": form}

    def learning_rate(self, network: str) -> float:
        own = network == "generator"
        return self.sparring.generator_learning_rate if own else super().learning_rate(network)

    def rules(self) -> list[Rule]:
        return [collapse_rule(self.config), *generator_rules(self.config.block(GeneratorWatchConfig))]

    def phases(self) -> list[Phase]:
        if self.sparring.update == "shared":
            handed = "" if self.term.opposes else "sparring.update: alternating, which has the same gradients"
            return [Phase("sparring", ("generator", *self.recognition), self._shared, inner_gradients=handed)]
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
        """One recognizer forward; the attack's gradient at the whitened faces is passed to the generator."""
        spar = self._spar(batch, self.networks["generator"])
        opposes, weight = self.term.opposes, self.sparring.attack_weight
        whitened = spar.made.whitened
        seen = (
            objectives.reverse_gradient(whitened, weight) if opposes else whitened.detach().requires_grad_()
        )
        embedded = self._embed(batch, self.networks["recognizer"], self.networks.get("head"), seen)
        loss, metrics = self._recognition(embedded)
        extra, generator_metrics = self._regularise(spar)
        attack = self.term(embedded, lambda: loss)
        generator_loss = weight * attack.detach() + extra.detach()
        total = loss + extra
        if not opposes:
            total = total + (whitened * self._gradient(weight * attack, seen)).sum()
        metrics |= generator_metrics | _generator_metrics(generator_loss, attack, embedded)
        return total, metrics

    def _generator_phase(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """Update the generator. The recognizer's BatchNorm statistics change only in the recognizer phase."""
        spar = self._spar(batch, self.networks["generator"])
        recognizer = bare(self.networks["recognizer"])
        head = bare(self.networks["head"]) if "head" in self.networks else None
        with frozen_statistics(recognizer):
            embedded = self._embed(batch, recognizer, head, spar.made.whitened)
        attack = self.term(embedded, lambda: self._recognition(embedded)[0])
        extra, metrics = self._regularise(spar)
        loss = self.sparring.attack_weight * attack + extra
        return loss, metrics | _generator_metrics(loss, attack, embedded)

    def _recognizer_phase(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        generator = bare(self.networks["generator"])
        with torch.no_grad(), frozen_statistics(generator):
            spar = self._spar(batch, generator)
        recognizer, head = self.networks["recognizer"], self.networks.get("head")
        return self._recognition(self._embed(batch, recognizer, head, spar.made.whitened))

    def _spar(self, batch: FaceBatch, generator: nn.Module) -> Sparring:
        x, epsilon = faces(self.config, batch), _sae(generator).epsilon
        perturbation, mask = generator(x, self._noise(batch, _sae(generator)))
        made = synthesize_whitened(x, perturbation, mask, epsilon, input_dtype(x))
        return Sparring(x, perturbation, mask, epsilon, made)

    def _noise(self, batch: FaceBatch, sae: SAE) -> Tensor | None:
        if sae.noise == 0:
            return None
        return normal(self.config.training.seed, batch.positions, sae.noise_shape, NOISE_STREAM)

    def _embed(
        self, batch: FaceBatch, recognizer: nn.Module, head: nn.Module | None, whitened: Tensor
    ) -> Embedded:
        # a face and its sparring face drop the same features
        with parts(recognizer, 2), dropout(self.config, recognizer, batch.positions.repeat(2)):
            embeddings = recognizer(whitened, whitened=True)
        real, sparring = embeddings.chunk(2)
        all_real, all_sparring = self.gather(torch.stack([real, sparring], 1)).unbind(1)
        cosines = (None, None) if head is None else head(embeddings).chunk(2)
        both = self.gather(torch.stack([batch.labels, batch.positions], 1))
        labels, positions = both.T.contiguous()
        own, itself = batch.labels[:, None] == labels, batch.positions[:, None] == positions
        return Embedded(real, sparring, all_real, all_sparring, batch.labels, labels, own, itself, *cosines)

    def _recognition(self, embedded: Embedded) -> tuple[Tensor, Metrics]:
        """Return the recognizer's loss: that on real faces plus the weighted one on sparring faces.

        The triplet loss of sparring faces takes positives and negatives from the real faces.
        """
        real, sparring = embedded.real_cosines, embedded.sparring_cosines
        objective, labels, all_labels = self.objective, embedded.labels, embedded.all_labels
        on_real, metrics = identity_loss(objective, embedded.all_real, all_labels, real, labels)
        on_sparring, more = identity_loss(
            objective, embedded.all_sparring, all_labels, sparring, labels, against=embedded.all_real
        )
        loss = on_real + self.sparring.weight * on_sparring
        metrics |= {f"sparring_{name}": value for name, value in more.items()}
        collapse = objectives.mean_pairwise_cosine(embedded.all_real.detach())
        return loss, {"loss": loss.detach(), **metrics, "embedding_cosine": collapse}

    def _regularise(self, spar: Sparring) -> tuple[Tensor, Metrics]:
        """Return the weighted sum of the norm of ε·δ·m and the mask area."""
        norm, area = spar.made.norm.mean(), spar.made.area.mean()
        metrics = {
            "perturbation_norm": norm.detach(),
            "mask_mean": area.detach(),
            "perturbation_mean": spar.made.applied.mean(),
        }
        return self.sparring.perturbation_weight * norm + self.sparring.mask_weight * area, metrics

    def _gradient(self, loss: Tensor, at: Tensor) -> Tensor:
        """Return d loss / d `at`, keeping the graph.

        It is computed at the gradient scaler's scale; if that overflows under fp16, the step is dropped and
        the scale is lowered.
        """
        scale = self.scale(loss.new_ones(()))
        (gradient,) = torch.autograd.grad(loss * scale, at, retain_graph=True)
        return gradient / scale


def _generator_metrics(loss: Tensor, attack: Tensor, embedded: Embedded) -> Metrics:
    """Metrics: how far sparring faces move from their sources, and how many are no longer recognized."""
    real, sparring, every = embedded.real.detach(), embedded.sparring.detach(), embedded.all_real.detach()
    with torch.autocast(real.device.type, enabled=False):
        fooled = objectives.changed_decisions(real, sparring, every, embedded.own, embedded.itself)
        shift = 1 - (real * sparring).sum(1).mean()
    return {"generator_loss": loss.detach(), "attack": attack.detach(), "shift": shift, "fooled": fooled}


def _sae(generator: nn.Module) -> SAE:
    sae = bare(generator)
    assert isinstance(sae, SAE)
    return sae
