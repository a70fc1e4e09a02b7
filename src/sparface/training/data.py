"""The training data of a run: its shard sets, their combined identities, and the stream of faces."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch

from sparface.config import Config
from sparface.errors import UserError
from sparface.evaluation.verification import Validator
from sparface.recipes import Recipe
from sparface.shards import FaceStream, MixedStream, ShardSet, damaged

SEED_STEP = 1_000_003
"""Difference between the sets' seeds, so that sets of the same layout are not read in the same order."""


class TrainingData:
    """The shard sets of `data.shards` and `data.mix`. Raises `UserError` if one cannot be used."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.sets = [open_shards(folder, config.size) for folder in (config.data.shards, *config.data.mix)]
        names = dict.fromkeys(name for shards in self.sets for name in shards.identities)
        self.identities = {name: label for label, name in enumerate(names)}

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
                seed=self.config.training.seed + number * SEED_STEP,
                window=data.window,
                lanes=data.lanes,
                images_seen=images_seen * count // data.identities_per_batch,
                rank=rank,
                world_size=world_size,
                on_bad_sample=data.on_bad_sample,
                max_bad_share=data.max_bad_share,
            )
            for number, (shards, count) in enumerate(zip(self.sets, groups, strict=True))
        ]
        labels = [torch.tensor([self.identities[name] for name in s.identities]) for s in self.sets]
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
        "identities": len(data.identities),
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


def open_validator(config: Config, recipe: Recipe) -> Validator | None:
    """Open the validation set, if one is configured. Raises `UserError` for a recipe without a recognizer."""
    if not config.validation.shards:
        return None
    if "recognizer" not in recipe.finished:
        raise UserError(f"validation.shards: the recipe {config.recipe} trains no recognizer; leave it empty")
    validation = config.validation
    shards = open_shards(validation.shards, config.size)
    return Validator(shards, validation.pairs, validation.mirror)
