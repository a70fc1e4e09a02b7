"""Make faces of the people of a set from noise: a GAN whose discriminator also names people.

A step is the discriminator's update, in some steps another one with the R1 penalty, and the generator's. The
noise and the changes that hide faces are drawn from (seed, position in the stream), in a stream of their own
for each use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparface.config import Config
from sparface.errors import UserError
from sparface.models.batchnorm import frozen_statistics
from sparface.models.noise_gan import SMALLEST, Discriminator, NoiseGanConfig, NoiseGenerator, draw_noise
from sparface.recipes.base import (
    FaceBatch,
    Finished,
    Metrics,
    Phase,
    Recipe,
    Role,
    Rule,
    evaluating,
    faces,
)
from sparface.recipes.noise_gan_watch import Levels, NoiseGanWatchConfig, diversity, noise_gan_rules
from sparface.variation.differentiable import hide

NOISE_STREAMS = {"discriminator": 30, "generator": 31, "preview": 32}
REAL_STREAM, MADE_STREAM, GENERATOR_STREAM = 33, 34, 35
"""Streams of `sparface.randomness`: of the noise, and of what hides real and made faces."""
CAPTIONS = {
    "Discriminator": {
        "loss": "total loss",
        "adversarial": "cross-entropy of real and made faces",
        "real_right": "share of real faces that are taken for real",
        "made_right": "share of made faces that are found out",
        "accuracy": "accuracy of identities on training batches",
        "r1": "squared gradient at real faces (R1)",
    },
    "Generator": {
        "generator_loss": "total loss",
        "made_accuracy": "share of made faces in which the discriminator names the person they should show",
        "diversity": "spread of made faces, relative to real ones",
        "variety": "spread of made faces of one person, relative to real ones",
        "frechet": "Fréchet distance to training faces",
        "precision": "share of made faces that are among training faces",
        "recall": "share of training faces that are among made faces",
    },
}


def _build_generator(config: Config) -> NoiseGenerator:
    return NoiseGenerator(config.block(NoiseGanConfig), config.size, 1)


def _build_discriminator(config: Config) -> Discriminator:
    return Discriminator(config.block(NoiseGanConfig), config.size, 1)


FINISHED_GENERATOR = Finished("generator", _build_generator)


class NoiseGanRecipe(Recipe):
    """Trains the networks `generator` and `discriminator` in turns."""

    blocks: ClassVar[Mapping[str, type]] = {
        "noise_gan": NoiseGanConfig,
        "noise_gan_watch": NoiseGanWatchConfig,
    }
    identities = 2
    finished: ClassVar[Mapping[Role, Finished]] = {
        "generator": FINISHED_GENERATOR,
        "classifier": Finished("discriminator", _build_discriminator),
    }
    captions: ClassVar[Mapping[str, Mapping[str, str]]] = CAPTIONS
    pictures: ClassVar[Mapping[str, str]] = {
        "face": "real face",
        "made": "face made from noise, of the same person",
        "hidden": "real face as the discriminator sees it",
    }
    headline = ("loss", "generator_loss", "real_right", "made_right", "made_accuracy", "diversity")

    def __init__(self, config: Config, identities: int) -> None:
        super().__init__(config, identities)
        self.gan = config.block(NoiseGanConfig)
        self.networks = {
            "generator": NoiseGenerator(self.gan, config.size, identities),
            "discriminator": Discriminator(self.gan, config.size, identities),
        }
        self.frozen["levels"] = Levels(config.block(NoiseGanWatchConfig).half_life)

    @classmethod
    def check(cls, config: Config) -> None:
        gan, training = config.block(NoiseGanConfig), config.training
        if config.size < SMALLEST:
            raise UserError(f"size: {config.size} is not allowed with noise_gan; must be at least {SMALLEST}")
        if gan.r1 > 0 and training.strategy == "deepspeed":
            raise UserError("noise_gan.r1: is not supported with deepspeed; use ddp, or set it to 0")
        if gan.r1 > 0 and training.compile:
            raise UserError("noise_gan.r1: is not supported with training.compile; set one of them to 0")

    @classmethod
    def identity(cls, config: Config) -> dict[str, Any]:
        gan = config.block(NoiseGanConfig)
        shapes = ("width", "latent", "embedding", "conditional", "spectral_norm")
        return {"noise_gan": {name: getattr(gan, name) for name in shapes}}

    @classmethod
    def roles(cls, config: Config) -> Mapping[Role, Finished]:
        named = config.block(NoiseGanConfig).identity_weight > 0
        return cls.finished if named else {"generator": FINISHED_GENERATOR}

    def learning_rate(self, network: str) -> float:
        own = network == "discriminator"
        return self.gan.discriminator_learning_rate if own else super().learning_rate(network)

    def rules(self) -> list[Rule]:
        return noise_gan_rules(self.config.block(NoiseGanWatchConfig))

    def phases(self) -> list[Phase]:
        found = [
            Phase("discriminator", ("discriminator",), self._discriminate),
            Phase("generator", ("generator",), self._generate),
        ]
        if self.gan.r1 > 0:
            found.insert(1, Phase("r1", ("discriminator",), self._penalty, every=self.gan.r1_every))
        return found

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        """The noise is always the same."""
        x = faces(self.config, batch)
        generator = self.networks["generator"]
        seed, places = self.config.training.seed, torch.arange(len(x), device=x.device)
        with evaluating(generator):
            noise = draw_noise(self.gan.latent, seed, places, NOISE_STREAMS["preview"])
            made = generator(noise, batch.labels)
        hidden = {"hidden": self._hidden(x, batch, REAL_STREAM)} if self.gan.augmentation else {}
        return {"face": x, "made": made, **hidden}

    def _noise(self, batch: FaceBatch, use: str) -> Tensor:
        return draw_noise(self.gan.latent, self.config.training.seed, batch.positions, NOISE_STREAMS[use])

    def _hidden(self, x: Tensor, batch: FaceBatch, stream: int) -> Tensor:
        if not self.gan.augmentation:
            return x
        return hide(x, self.config.training.seed, batch.positions, stream)

    def _discriminate(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        real, generator = faces(self.config, batch), self.networks["generator"]
        with torch.no_grad(), frozen_statistics(generator):
            made = generator(self._noise(batch, "discriminator"), batch.labels)
        shown = [self._hidden(real, batch, REAL_STREAM), self._hidden(made, batch, MADE_STREAM)]
        judged, logits = self.networks["discriminator"](torch.cat(shown), realness=True)
        of_real, of_made = judged.chunk(2)
        adversarial = F.softplus(-of_real).mean() + F.softplus(of_made).mean()
        names = logits[: len(real)]
        loss = adversarial + self.gan.identity_weight * F.cross_entropy(names, batch.labels)
        right = {"real_right": _share(of_real > 0), "made_right": _share(of_made <= 0)}
        accuracy = _share(names.detach().argmax(1) == batch.labels)
        metrics = {"loss": loss.detach(), "adversarial": adversarial.detach(), "accuracy": accuracy} | right
        each = torch.stack([of_real > 0, of_made <= 0], 1).float().mean(1)
        return loss, metrics | self._watched(real, made, each, batch.labels)

    def _watched(self, real: Tensor, made: Tensor, right: Tensor, labels: Tensor) -> Metrics:
        """How much the made faces of all processes differ, and how long that and the discriminator's success
        have been so."""
        group = self.config.data.images_per_identity if self.gan.conditional else 1
        small = [_small(real), _small(made), right[:, None].detach()]
        gathered, people = self.gather(torch.cat(small, 1), labels)
        by_person = gathered[people.argsort(stable=True)]
        of_real, of_made, everywhere = torch.split(by_person, [s.shape[1] for s in small], 1)
        spread = diversity(of_real, of_made, group)
        levels = self.frozen["levels"]
        assert isinstance(levels, Levels)
        levels.observe({"right": everywhere.mean(), **spread}, len(everywhere))
        return spread | levels.metrics()

    def _penalty(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """R1 at the faces as the discriminator sees them; in full precision, for the gradient's gradient."""
        x = self._hidden(faces(self.config, batch), batch, REAL_STREAM).detach().requires_grad_()
        discriminator = self.networks["discriminator"]
        with torch.autocast(x.device.type, enabled=False), frozen_statistics(discriminator):
            judged, logits = discriminator(x, realness=True)
        (slope,) = torch.autograd.grad(judged.sum(), x, create_graph=True)
        penalty = slope.square().sum((1, 2, 3)).mean()
        # every parameter must have a gradient
        loss = self.gan.r1_every * self.gan.r1 / 2 * penalty + 0.0 * (judged.sum() + logits.sum())
        return loss, {"r1": penalty.detach()}

    def _generate(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        made = self.networks["generator"](self._noise(batch, "generator"), batch.labels)
        discriminator = self.networks["discriminator"]
        with frozen_statistics(discriminator):
            judged, logits = discriminator(self._hidden(made, batch, GENERATOR_STREAM), realness=True)
        saturating = self.gan.loss == "minimax"
        loss = -F.softplus(judged).mean() if saturating else F.softplus(-judged).mean()
        found: Metrics = {}
        if self.gan.conditional:
            loss = loss + self.gan.identity_weight * F.cross_entropy(logits, batch.labels)
            found["made_accuracy"] = _share(logits.detach().argmax(1) == batch.labels)
        return loss, found | {"generator_loss": loss.detach()}


def _small(x: Tensor) -> Tensor:
    """Faces of 8 × 8 pixels, [b,192]: the spread of larger ones would be that of their noise."""
    return F.adaptive_avg_pool2d(x.detach().float(), 8).flatten(1)


def _share(flags: Tensor) -> Tensor:
    return flags.float().mean()
