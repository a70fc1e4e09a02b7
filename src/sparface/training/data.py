"""The training data of a run: its shard sets, their combined identities, and the stream of faces."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from sparface.config import Config
from sparface.errors import UserError
from sparface.evaluation.classification import ClassValidator
from sparface.evaluation.made_faces import MadeFacesValidator
from sparface.evaluation.verification import Validator
from sparface.groups import interleaved
from sparface.models.noise_gan import NoiseGanConfig
from sparface.recipes import Recipe, Role, registry
from sparface.shards import FaceStream, MixedStream, ShardSet, damaged
from sparface.shards.labels import IDENTITY

SEED_STEP = 1_000_003
"""Difference between the sets' seeds, so that sets of the same layout are not read in the same order."""


class TrainingData:
    """The shard sets of `data.shards` and `data.mix`. Raises `UserError` if one cannot be used."""

    classes: dict[str, int]
    """The classes of the label that the recipe learns, in all sets: name → number."""

    def __init__(self, config: Config) -> None:
        self.config, self.label = config, registry.find(config.recipe).label
        self.sets = [open_shards(folder, config.size) for folder in (config.data.shards, *config.data.mix)]
        names = dict.fromkeys(name for shards in self.sets for name in shards.classes(self.label))
        in_order = names if self.label == IDENTITY else sorted(names)
        self.classes = {name: label for label, name in enumerate(in_order)}

    @cached_property
    def lanes(self) -> list[int]:
        """Number of lanes of each set's stream."""
        stream = self.stream()
        return [one.lanes for one in (stream.streams if isinstance(stream, MixedStream) else [stream])]

    @property
    def digest(self) -> str:
        """Digest of the sets' exact content, in the order in which they are mixed."""
        return "+".join(shards.digest for shards in self.sets)

    @property
    def facts(self) -> dict[str, Any]:
        """What is needed to use the trained networks: the alignment of the faces, and the names of classes
        that are not identities, or that a classifier learns."""
        named = self.label != IDENTITY or "classifier" in registry.find(self.config.recipe).finished
        known = {"classes": list(self.classes)} if named else {}
        return {"template": self.template, **known}

    @property
    def template(self) -> str | None:
        """Template that the faces were aligned to, also needed for test faces; None if unknown."""
        template = self.sets[0].manifest.provenance.get("template")
        return template if isinstance(template, str) else None

    def damaged(self, rank: int, world_size: int) -> list[str]:
        """Check one rank's share of the shards; returns a message for each missing or damaged one.

        Shards of remote sets are checked when they are downloaded.
        """
        local = [shards for shards in self.sets if not shards.remote]
        every = [(shards, number) for shards in local for number in range(len(shards.manifest.shards))]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            found = pool.map(lambda one: damaged(*one), every[rank::world_size])
            return [problem for problem in found if problem]

    def stream(self, images_seen: int = 0, rank: int = 0, world_size: int = 1) -> FaceStream | MixedStream:
        """Return one rank's part of the endless stream, starting at `images_seen`."""
        data = self.config.data
        mixed = list(data.mix.values())
        groups = [data.identities_per_batch - sum(mixed), *mixed]
        streams = [
            FaceStream(
                shards,
                identities_per_batch=count,
                images_per_identity=data.images_per_identity,
                interleave=interleaved(self.config),
                seed=self.config.training.seed + number * SEED_STEP,
                window=data.window,
                lanes=data.lanes,
                images_seen=images_seen * count // data.identities_per_batch,
                rank=rank,
                world_size=world_size,
                on_bad_sample=data.on_bad_sample,
                max_bad_share=data.max_bad_share,
                label=self.label,
            )
            for number, (shards, count) in enumerate(zip(self.sets, groups, strict=True))
        ]
        labels = [torch.tensor([self.classes[name] for name in s.classes(self.label)]) for s in self.sets]
        return streams[0] if len(streams) == 1 else MixedStream(streams, labels)


def open_shards(folder: str, size: int) -> ShardSet:
    """Open a shard set. Raises `UserError` if its faces do not have the configured size."""
    shards = ShardSet.open(folder)
    shards.require_size(size)
    return shards


def checkpoint_identity(config: Config, recipe: Recipe, data: TrainingData) -> str:
    """Return the settings of networks and stream that a checkpoint must match to be resumed, as JSON."""
    settings = {
        **recipe.identity(config),
        "recipe": config.recipe,
        "size": config.size,
        "identities": len(data.classes),
        "optimizer": config.optimizer.name,
        "average": bool(config.training.average_half_life),
        "shards": data.digest,
        "seed": config.training.seed,
        "batch": [
            config.data.identities_per_batch,
            config.data.images_per_identity,
            *config.data.mix.values(),
        ],
        "order": [config.data.window, *data.lanes],
    }
    return json.dumps(settings, sort_keys=True)


class Validation(Protocol):
    """Measures a network during training, on a shard set."""

    role: Role
    """The role of the network."""
    shard_set: ShardSet

    def __call__(self, network: nn.Module, /) -> dict[str, float]:
        """Return figures; all NaN if the network's outputs are not finite."""


def open_validators(config: Config, recipe: Recipe, data: TrainingData) -> list[Validation]:
    """Open what the settings in `validation` name. Raises `UserError` if it cannot be used, or if the recipe
    trains nothing that is validated in this way."""
    found, (shards, judge) = list[Validation](), (config.validation.shards, config.validation.judge)
    trained = recipe.roles(config)
    if shards and "recognizer" in trained:
        opened = open_shards(shards, config.size)
        found.append(Validator(opened, config.validation.pairs, config.validation.mirror))
    elif shards and "classifier" in trained:
        found.append(ClassValidator(open_shards(shards, config.size), data.label, list(data.classes)))
    elif shards:
        raise UserError(
            f"validation.shards: the recipe {config.recipe} trains nothing that recognizes; leave it empty"
        )
    if judge and (gan := config.find(NoiseGanConfig)):
        found.append(MadeFacesValidator(judge, data.sets[0], data.classes, gan.latent))
    elif judge:
        raise UserError(
            f"validation.judge: the recipe {config.recipe} makes no faces from noise; leave it empty"
        )
    return found
