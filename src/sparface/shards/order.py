"""The order of the stream: a pure function of (runs, seed, epoch), computed one window at a time.

All randomness comes from sorting raw Philox words. NumPy guarantees that these words never change, but not
the results of its shuffles, and a run must be resumable under a newer NumPy.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """The runs of some shards as flat arrays: 8 bytes per run and 8 per shard."""

    labels: NDArray[np.int32]
    """[runs]"""
    counts: NDArray[np.int32]
    """[runs]: number of samples in each run"""
    bounds: Ints
    """[shards + 1]: shard s contains the runs bounds[s] .. bounds[s + 1] - 1."""

    @classmethod
    def of(cls, shards: Sequence[NDArray[np.int32]]) -> Runs:
        """Create from the labels and counts [runs, 2] of each shard."""
        flat = np.concatenate(shards)
        bounds = np.cumsum([0] + [len(runs) for runs in shards])
        return cls(np.ascontiguousarray(flat[:, 0]), np.ascontiguousarray(flat[:, 1]), bounds)

    def inside(self, shards: Ints) -> tuple[Ints, Ints]:
        """The indices of the runs in some shards, shard by shard, and the number of runs in each shard."""
        lengths = self.bounds[shards + 1] - self.bounds[shards]
        firsts = self.bounds[shards] - (np.cumsum(lengths) - lengths)
        return np.repeat(firsts, lengths) + np.arange(lengths.sum()), lengths


@dataclass(frozen=True)
class Group:
    """K faces of one run, and the run's other faces, which can replace broken ones."""

    shard: int
    label: int
    samples: list[int]
    """All samples of the run, as indices into the shard, in the order of this epoch."""
    first: int
    """Face k of the group is samples[(first + k) % len(samples)]; its replacements follow it."""


class Window:
    """The groups of a few shards, in the order of one epoch."""

    def __init__(self, runs: Runs, shards: Ints, images_per_identity: int, entropy: tuple[int, ...]) -> None:
        chosen, lengths = runs.inside(shards)
        self._labels, counts = runs.labels[chosen], runs.counts[chosen].astype(np.int64)
        self._shards = np.repeat(shards, lengths)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        shard_starts = self._starts[np.concatenate([[0], np.cumsum(lengths)])[:-1]]
        words = _random_words((*entropy, 0), int(self._starts[-1]))
        # Sorting by run and then by random word permutes the samples within each run.
        order = np.lexsort((words, np.repeat(np.arange(len(chosen)), counts)))
        self._samples = order - np.repeat(shard_starts, np.add.reduceat(counts, np.cumsum(lengths) - lengths))
        groups = -(-counts // images_per_identity)
        group_runs = np.repeat(np.arange(len(chosen)), groups)
        firsts = (
            np.arange(len(group_runs)) - np.repeat(np.cumsum(groups) - groups, groups)
        ) * images_per_identity
        shuffled = permutation((*entropy, 1), len(group_runs))
        self._group_runs, self._firsts = group_runs[shuffled], firsts[shuffled]

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._group_runs)

    def group(self, index: int) -> Group:
        run = int(self._group_runs[index])
        samples = self._samples[self._starts[run] : self._starts[run + 1]].tolist()
        return Group(int(self._shards[run]), int(self._labels[run]), samples, int(self._firsts[index]))


@dataclass(frozen=True)
class Part:
    """The faces of one group that are in a part of a batch."""

    group: int
    """Place of the group in the batch."""
    faces: range
    """Which of the group's faces."""
    rows: slice
    """Their rows, counted from the first of the part."""


def parts_of(rows: range, images_per_identity: int, interleave: int) -> Iterator[Part]:
    """Return what the rows of a batch contain, group by group.

    Every `interleave` groups of K faces in a row are interleaved: first their first faces, then their second
    faces, and so on.
    """
    together = interleave * images_per_identity
    for block in range(rows.start // together, -(-rows.stop // together)):
        for place in range(interleave):
            start = block * together + place
            inside = range(start, start + together, interleave)
            first, last = (-(-(end - start) // interleave) for end in (rows.start, rows.stop))
            faces = range(images_per_identity)[max(first, 0) : max(last, 0)]
            if faces:
                at = inside[faces.start] - rows.start
                until = inside[faces.stop - 1] - rows.start + 1
                yield Part(block * interleave + place, faces, slice(at, until, interleave))


class LaneOrder:
    """The infinite order of the groups of one lane: in each epoch, the shards are permuted and split into
    windows."""

    def __init__(
        self, runs: Runs, shards: Ints, *, images_per_identity: int, seed: int, window: int, lane: int
    ) -> None:
        """`shards` are the shards of the lane; `window` is the number of shards to shuffle together."""
        self._runs, self._shards, self._images_per_identity = runs, shards, images_per_identity
        self._seed, self._window, self._lane = seed, window, lane
        chosen, lengths = runs.inside(shards)  # only this lane's runs: counting all runs per lane is slow
        groups = -(-runs.counts[chosen] // images_per_identity)
        self._groups = np.add.reduceat(groups, np.cumsum(lengths) - lengths, dtype=np.int64)
        self.epoch_groups = int(self._groups.sum())
        self._planned: tuple[int, Ints, Ints] | None = None

    def locate(self, group: int) -> tuple[int, int, int]:
        """The epoch, window and place in the window of the lane's `group`-th group, counted from 0."""
        epoch, place = divmod(group, self.epoch_groups)
        _, ends = self._epoch(epoch)
        number = int(np.searchsorted(ends, place, side="right"))
        return epoch, number, place - (int(ends[number - 1]) if number else 0)

    def window(self, epoch: int, number: int) -> Window:
        """The groups in the `number`-th window of an epoch."""
        entropy = (self._seed, self._lane, epoch, 1 + number)
        return Window(self._runs, self.shards(epoch, number), self._images_per_identity, entropy)

    def shards(self, epoch: int, number: int) -> Ints:
        """The shards of the `number`-th window of an epoch; empty after the last window."""
        return self._epoch(epoch)[0][number * self._window : (number + 1) * self._window]

    def _epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The shards of an epoch in order, and the cumulative groups per window; caches the latest epoch."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, *self._plan(epoch))
        return self._planned[1:]

    def _plan(self, epoch: int) -> tuple[Ints, Ints]:
        order = permutation((self._seed, self._lane, epoch, 0), len(self._shards))
        starts = np.arange(0, len(order), self._window)
        return self._shards[order], np.cumsum(np.add.reduceat(self._groups[order], starts))


def fitting_lanes(groups: int, shards: int, window: int) -> int:
    """The largest number of lanes that divides `groups` per batch with `window` shards per lane; at least 1.

    With fewer shards per lane, lanes would differ in length, and faces in short lanes would be seen more
    often. The result must not depend on the number of processes, because lanes determine the stream's order.
    """
    divisors = (lanes for lanes in range(2, groups + 1) if groups % lanes == 0)
    return max((lanes for lanes in divisors if lanes * window <= shards), default=1)


def deal(samples: Ints, lanes: int) -> list[Ints]:
    """Distribute shards over lanes, largest first, each to the lane with the fewest samples.

    Returns the shard indices of each lane.
    """
    heap = [(0, lane) for lane in range(lanes)]
    hands: list[list[int]] = [[] for _ in range(lanes)]
    for shard in np.argsort(-samples, kind="stable").tolist():
        total, lane = heapq.heappop(heap)
        hands[lane].append(shard)
        heapq.heappush(heap, (total + int(samples[shard]), lane))
    return [np.array(sorted(hand), dtype=np.int64) for hand in hands]


def permutation(entropy: tuple[int, ...], length: int) -> Ints:
    """A permutation of 0 .. length - 1 that depends only on `entropy`."""
    return np.argsort(_random_words(entropy, length), kind="stable")


def _random_words(entropy: tuple[int, ...], length: int) -> NDArray[np.uint64]:
    return np.random.Philox(np.random.SeedSequence(entropy)).random_raw(length)
