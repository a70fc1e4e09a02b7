"""Combine several shard sets in one stream; each contributes a fixed number of groups to every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from sparface.shards.codec import room
from sparface.shards.stream import Batch, FaceStream, Room


class MixedStream(IterableDataset[Batch]):
    """Batches whose groups come from several streams, in the order of the streams.

    All faces of a group come from one set and have one identity; an identity that is in several sets has one
    label. The streams advance together, so the number of images seen is the whole state here too.
    """

    epoch_images: int
    """Images from all sets during one pass over the first set."""

    def __init__(self, streams: Sequence[FaceStream], labels: Sequence[Tensor]) -> None:
        """`streams` must start at the same batch; `labels` [identities of the set] maps each set's labels to
        labels of the mixed stream."""
        super().__init__()
        self.streams, self.labels = list(streams), list(labels)
        self.sizes = [s.identities_per_batch * s.images_per_identity for s in streams]
        self.epoch_images = streams[0].epoch_images * sum(self.sizes) // self.sizes[0]

    def __iter__(self) -> Iterator[Batch]:
        return self.decoded(room)

    def decoded(self, memory: Room) -> Iterator[Batch]:
        """The batches of `__iter__`, each decoded into its own `memory`, part by part."""
        whole: NDArray[np.uint8] = np.empty(0, np.uint8)
        filled = 0

        def part_of_whole(*shape: int) -> NDArray[np.uint8]:
            nonlocal whole, filled
            count, *size = shape
            if filled == len(whole):
                share = self.streams[0].world_size
                whole, filled = memory(sum(self.sizes) // share, *size), 0
            filled += count
            return whole[filled - count : filled]

        for parts in zip(*(stream.decoded(part_of_whole) for stream in self.streams), strict=True):
            yield Batch(
                torch.from_numpy(whole).permute(0, 3, 1, 2),
                torch.cat([known[part.labels] for known, part in zip(self.labels, parts, strict=True)]),
                [key for part in parts for key in part.keys],
                torch.cat([self.positions(number, part) for number, part in enumerate(parts)]),
                [name for part in parts for name in part.bad],
            )

    def positions(self, number: int, part: Batch) -> Tensor:
        """The positions in the mixed stream of a batch from stream `number`."""
        size, before = self.sizes[number], sum(self.sizes[:number])
        return part.positions // size * sum(self.sizes) + before + part.positions % size
