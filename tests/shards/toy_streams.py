"""Streams of the toy set, and batches that can be compared."""

from __future__ import annotations

from typing import Any

import torch
from toy_sets import take

from sparface.shards import Batch, FaceStream, Loader, ShardSet

P, K = 4, 3
"""Groups per batch, and faces per group."""


def stream(shard_set: ShardSet, **settings: Any) -> FaceStream:
    known = {"identities_per_batch": P, "images_per_identity": K, "seed": 3, "window": 3}
    return FaceStream(shard_set, **(known | settings))


def joined(batches: list[Batch]) -> tuple[list[str], list[int], list[int], torch.Tensor]:
    return (
        [key for batch in batches for key in batch.keys],
        [label for batch in batches for label in batch.labels.tolist()],
        [position for batch in batches for position in batch.positions.tolist()],
        torch.cat([batch.images for batch in batches]),
    )


def same(first: list[Batch], second: list[Batch]) -> bool:
    a, b = joined(first), joined(second)
    return a[:3] == b[:3] and torch.equal(a[3], b[3])


def of_all_ranks(shard_set: ShardSet, world: int, workers: int, steps: int, **settings: Any) -> list[Batch]:
    """The batches of all ranks, in the order rank 0, rank 1, ... of each step."""
    ranks = [
        take(iter(Loader(stream(shard_set, rank=r, world_size=world, **settings), workers=workers)), steps)
        for r in range(world)
    ]
    return [batch for step in zip(*ranks, strict=True) for batch in step]
