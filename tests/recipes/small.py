"""Small recipes and batches for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sparface.config import Config, DataConfig, TrainingConfig
from sparface.models.classifier import ClassifierConfig
from sparface.models.noise_gan import NoiseGanConfig
from sparface.models.recognizer import RecognizerConfig, build_recognizer
from sparface.models.sae import GeneratorConfig
from sparface.recipes import Recipe, build_recipe
from sparface.recipes.expression import AdversarialConfig
from sparface.recipes.generator_watch import GeneratorWatchConfig
from sparface.recipes.noise_gan_watch import NoiseGanWatchConfig
from sparface.recipes.purifier import PurifierConfig
from sparface.recipes.recognizer import ObjectiveConfig
from sparface.recipes.sparring_config import SparringConfig
from sparface.training.strategies.base import Strategy

IDENTITIES = 6
ADDED: dict[str, Any] = {"slots": "add", "weight": 0.7}

NOISE_GAN = NoiseGanConfig(width=4, latent=6, embedding=5)


@dataclass
class Batch:
    images: Tensor
    labels: Tensor
    positions: Tensor

    def part(self, rank: int, world_size: int) -> Batch:
        return Batch(*(t.chunk(world_size)[rank] for t in (self.images, self.labels, self.positions)))

    def mixed_part(self, rank: int, world_size: int) -> Batch:
        """As `data.mix` deals a batch whose halves are two sets: gathered, it is in another order."""
        parts = [self.part(half, 2).part(rank, world_size) for half in range(2)]
        names = ("images", "labels", "positions")
        return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def batch(size: int = 32, count: int = 8) -> Batch:
    """`count` faces, two of each identity in turn."""
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return Batch(images, torch.arange(count) // 2 % (IDENTITIES - 1) + 1, torch.arange(100, 100 + count))


def config(
    kind: str = "sparring",
    *,
    facenet: bool = False,
    dropout: float = 0.0,
    **given: Any,
) -> Config:
    """Small networks; `given` are settings of the recipes' blocks."""
    recognizer = RecognizerConfig("timm:test_resnet", 16)
    if dropout:
        recognizer = RecognizerConfig("small", 16, dropout=dropout)
    return Config(
        recipe=kind,
        size=80 if facenet else 32,
        data=DataConfig(identities_per_batch=4, images_per_identity=2),
        training=TrainingConfig(seed=3),
        blocks={
            "generator": GeneratorConfig(width=4, blocks=1, noise=0.5),
            "recognizer": RecognizerConfig() if facenet else recognizer,
            "objective": replace(ObjectiveConfig(arcface=0.5), **settings_of(ObjectiveConfig, given)),
            "sparring": replace(SparringConfig(**ADDED), **settings_of(SparringConfig, given)),
            "generator_watch": GeneratorWatchConfig(),
            "classifier": ClassifierConfig("test_resnet"),
            "adversarial": AdversarialConfig(**settings_of(AdversarialConfig, given)),
            "purifier": PurifierConfig(
                **{"recognizer": "given", "components": 5, **settings_of(PurifierConfig, given)}
            ),
            "noise_gan": replace(NOISE_GAN, **settings_of(NoiseGanConfig, given)),
            "noise_gan_watch": NoiseGanWatchConfig(**settings_of(NoiseGanWatchConfig, given)),
        },
    )


def settings_of(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the given settings that a block has."""
    return {f.name: given[f.name] for f in fields(kind) if f.name in given}


def recipe(settings: Config) -> Recipe:
    """The recipe with the weights of seed 0."""
    torch.manual_seed(0)
    made = build_recipe(settings, IDENTITIES)
    if made.uses_recognizer(settings):
        made.frozen["recognizer"] = build_recognizer(RecognizerConfig("timm:test_resnet", 16)).eval()
        made.frozen["recognizer"].requires_grad_(False)
        images = batch(settings.size).images
        made.learn(Everyone(len(images), lambda part: part(images)))
    return made


@dataclass
class Everyone:
    """The faces of a batch as those of the whole training set."""

    count: int
    total: Callable[[Callable[[Tensor], Tensor]], Tensor]


def step(
    made: Recipe, faces: Batch, strategy: Strategy | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradients, metrics and buffers of one step without an update; with a strategy, of all its processes."""
    gradients: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    for phase in made.phases():
        for name, network in made.networks.items():
            network.requires_grad_(name in phase.updates)
            network.zero_grad()
        if strategy is None:
            loss, more = phase.loss(faces)
            loss.backward()
        else:
            more = strategy.backward(phase, faces, 1.0, last=True)
        metrics |= more
        gradients |= {
            f"{name}.{key}": p.grad.clone()
            for name in phase.updates
            for key, p in made.networks[name].named_parameters()
            if p.grad is not None
        }
    return gradients, metrics, buffers_of(made)


def buffers_of(made: Recipe) -> dict[str, Tensor]:
    """Copies of all buffers."""
    return {
        f"{name}.{key}": b.clone()
        for name, network in made.networks.items()
        for key, b in network.named_buffers()
    }


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest relative difference of two sets of tensors, of which no entry may be missing.

    A tensor whose true value is zero (a bias before a BatchNorm) is compared with the largest of all.
    """
    assert a.keys() == b.keys()
    floor = 1e-6 * max(float(v.double().norm()) for v in a.values())
    return max(
        float((a[k].double() - b[k].double()).norm()) / max(float(a[k].double().norm()), floor) for k in a
    )
