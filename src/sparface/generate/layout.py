"""Assign variants to output shards: a pure function of three numbers.

The unit of work is one output shard: a block of consecutive source faces times a few variant numbers. A
shard thus holds many identities with many photos each, since training mixes only a few shards at a time,
and consecutive units share their sources.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_BLOCK = 1024
"""Maximum number of source faces in a block. Their codes stay in memory, 0.2 MB each at 112 pixels."""


@dataclass(frozen=True)
class Layout:
    """The units of a set of `sources` faces with `factor` variants each."""

    sources: int
    factor: int
    shard_samples: int

    @property
    def blocks(self) -> int:
        """Number of blocks of source faces; their sizes differ by at most 1."""
        return -(-self.sources // min(self.sources, self.shard_samples, MAX_BLOCK))

    @property
    def numbers(self) -> int:
        """Number of variant numbers in a unit."""
        return max(1, min(self.factor, self.shard_samples // -(-self.sources // self.blocks)))

    @property
    def units(self) -> int:
        return self.blocks * self._units_per_block

    @property
    def _units_per_block(self) -> int:
        return -(-self.factor // self.numbers)

    def block_of(self, unit: int) -> int:
        return unit // self._units_per_block

    def block(self, number: int) -> range:
        """Indices of a block's faces in the source set."""
        return range(number * self.sources // self.blocks, (number + 1) * self.sources // self.blocks)

    def variants(self, unit: int) -> range:
        """Variant numbers of a unit, from 1; every face of its block gets all of them."""
        first = 1 + unit % self._units_per_block * self.numbers
        return range(first, min(first + self.numbers, self.factor + 1))

    def samples(self, unit: int) -> int:
        """Number of variants requested from a unit."""
        return len(self.block(self.block_of(unit))) * len(self.variants(unit))

    def part(self, index: int, count: int) -> range:
        """Units of process `index` of `count`: consecutive ones, as these share their sources."""
        return range(index * self.units // count, (index + 1) * self.units // count)
