"""The faces that a run trains on: its shard sets, their identities together, and the stream."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch

from sparface.config import Config
from sparface.shards import FaceStream, MixedStream, ShardSet, damaged

SEED_STEP = 1_000_003
"""Between the seeds of the sets, so that sets of the same make-up are not read in the same order."""


class TrainingData:
    """`data.shards` and the sets of `data.mix`. Raises `UserError` for one that can't be used."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.sets = [open_shards(folder, config.size) for folder in (config.data.shards, *config.data.mix)]
        names = dict.fromkeys(name for shards in self.sets for name in shards.identities)
        self.identities = {name: label for label, name in enumerate(names)}

    @cached_property
    def lanes(self) -> list[int]:
        """Of each set's stream."""
        stream = self.stream()
        return [one.lanes for one in (stream.streams if isinstance(stream, MixedStream) else [stream])]

    @property
    def digest(self) -> str:
        """Names the sets' exact content and how they are mixed."""
        return "+".join(shards.digest for shards in self.sets)

    @property
    def template(self) -> str | None:
        """How the faces were aligned: test faces must be, too. None when the set does not say."""
        template = self.sets[0].manifest.provenance.get("template")
        return template if isinstance(template, str) else None

    def damaged(self, rank: int, world_size: int) -> list[str]:
        """Of one rank's share of all shards, those that are missing or have not the manifest's bytes.

        The shards of a remote set are checked when they come.
        """
        local = [shards for shards in self.sets if not shards.remote]
        every = [(shards, number) for shards in local for number in range(len(shards.manifest.shards))]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            found = pool.map(lambda one: damaged(*one), every[rank::world_size])
            return [problem for problem in found if problem]

    def stream(self, images_seen: int = 0, rank: int = 0, world_size: int = 1) -> FaceStream | MixedStream:
        """One rank's part of the endless stream from `images_seen` on."""
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
    """A shard set whose faces have the configured size; `UserError` for another."""
    shards = ShardSet.open(folder)
    shards.require_size(size)
    return shards
