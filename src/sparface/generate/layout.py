"""Which variant of which face goes into which output shard: a pure function of three numbers.

The unit of work is one output shard: a block of source faces, side by side in the source set, times
a few variant numbers. So a shard holds many identities with many photos each (a trainer mixes a few
shards at a time), and units that follow each other share their sources.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_BLOCK = 1024
"""Source faces in a block: their codes are kept in memory, 0.2 MB each at 112 pixels."""


@dataclass(frozen=True)
class Layout:
    """The units of a set of `sources` faces with `factor` variants each."""

    sources: int
    factor: int
    shard_samples: int

    @property
    def blocks(self) -> int:
        """Blocks of source faces, of equal size within 1."""
        return -(-self.sources // min(self.sources, self.shard_samples, MAX_BLOCK))

    @property
    def numbers(self) -> int:
        """Variant numbers in a unit."""
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
        """Places in the source set of a block's faces."""
        return range(number * self.sources // self.blocks, (number + 1) * self.sources // self.blocks)

    def variants(self, unit: int) -> range:
        """A unit's variant numbers, from 1; each face of its block has all of them."""
        first = 1 + unit % self._units_per_block * self.numbers
        return range(first, min(first + self.numbers, self.factor + 1))

    def samples(self, unit: int) -> int:
        """Variants that a unit is asked for."""
        return len(self.block(self.block_of(unit))) * len(self.variants(unit))

    def part(self, index: int, count: int) -> range:
        """The units of one of `count` processes: neighbours, which share their sources."""
        return range(index * self.units // count, (index + 1) * self.units // count)
