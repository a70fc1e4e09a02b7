"""Passes over all faces of a shard set, by all processes together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sparface.errors import UserError
from sparface.evaluation.embed import batches
from sparface.shards import ShardSet
from sparface.training.strategies.base import Strategy

PARTS = 8
"""Parts of the set, each summed by one process. Processes beyond that have nothing to do."""
BATCH = 256


class Passes:
    """`recipes.base.AllFaces` of a shard set.

    The set is divided into `PARTS`, and their sums are added in order. So the total has the same bits for any
    number of processes (if a process computes the same with fewer threads).
    """

    def __init__(self, shard_set: ShardSet, strategy: Strategy) -> None:
        self.shard_set, self.strategy = shard_set, strategy
        self.count = len(shard_set)

    def total(self, part: Callable[[Tensor], Tensor]) -> Tensor:
        strategy, total = self.strategy, None
        for first in range(0, PARTS, strategy.world_size):
            mine, problem = None, ""
            try:
                mine = self._sum(part, first + strategy.rank)
            except UserError as error:
                problem = str(error)
            if problems := list(filter(None, strategy.everyone(problem))):
                raise UserError(problems[0])
            assert mine is not None
            for rank in range(min(strategy.world_size, PARTS - first)):
                found = strategy.of_rank(rank, mine)
                total = found if total is None else total + found
        assert total is not None
        return total

    def _sum(self, part: Callable[[Tensor], Tensor], number: int) -> Tensor:
        """The sum over a part of the set; 0 if there is no part of this number."""
        device, (height, width) = self.strategy.device, self.shard_set.manifest.size
        found = part(torch.empty(0, 3, height, width, dtype=torch.uint8, device=device))
        if number >= PARTS:
            return found
        places = range(number * self.count // PARTS, (number + 1) * self.count // PARTS)
        images = (face.image for _, face in self.shard_set.faces_at(places))
        for some in batches(images, BATCH):
            found = found + part(torch.from_numpy(np.stack(some)).to(device).permute(0, 3, 1, 2))
        return found
