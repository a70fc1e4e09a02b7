"""The groups of faces that `training.batchnorm: ghost` normalises: the same on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

from sparface.config import Config
from sparface.errors import UserError

NAMED = 4
"""How many numbers of processes an error message names."""


def batchnorm_groups(config: Config, processes: int) -> int:
    """Return into how many groups each process divides its part of a batch for BatchNorm.

    The size of a group depends on the batch only: on each process, each set of `data.mix` must fill whole
    groups. Raises `UserError` as `require_whole_groups`.
    """
    require_whole_groups(config, [processes])
    return config.data.identities_per_batch // (_group(config) * processes)


def interleaved(config: Config) -> int:
    """Return how many identities of a batch the stream interleaves: as many as a group has faces, if there
    are so many.

    Then, a group's faces are of different people. If all photos of a person were in one group, the network
    could tell by the group's statistics what belongs together, but only during training (He et al. 2020,
    "Momentum Contrast", section 3.3).
    """
    if config.training.batchnorm != "ghost":
        return 1
    faces, shared = _group(config) * config.data.images_per_identity, _shared(config)
    return min((n for n in _divisors(shared) if n >= faces), default=shared)


def require_whole_groups(config: Config, processes: Sequence[int]) -> None:
    """Raise `UserError` unless each of these numbers of processes gets whole groups.

    The message has some of those that do not, the numbers that do, and sizes of groups that fit all.
    """
    each, group, shared = config.data.images_per_identity, _group(config), _shared(config)
    wrong = list(islice((n for n in processes if shared % (group * n)), NAMED))
    if not wrong:
        return
    numbers = [n for n in _divisors(shared) if shared % (group * n) == 0]
    sizes = [
        g * each for g in _divisors(shared) if g * each > 1 and not any(shared % (g * n) for n in processes)
    ]
    ways = [_either(numbers), *([f"groups of {_either(sizes)} faces"] if sizes else [])]
    raise UserError(
        f"training.batchnorm_group: {_either(wrong)} processes get no whole groups of {group * each} faces; "
        f"use {', '.join(ways)}, or another data.identities_per_batch, or training.batchnorm: synced"
    )


def _group(config: Config) -> int:
    """The number of identities in a group."""
    each, wanted = config.data.images_per_identity, config.training.batchnorm_group
    return min(_divisors(_shared(config)), key=lambda n: abs(math.log(n * each / wanted)))


def _shared(config: Config) -> int:
    """The largest number of identities that divides each set's part of a batch."""
    mixed = config.data.mix.values()
    return math.gcd(config.data.identities_per_batch - sum(mixed), *mixed)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _either(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, numbers))
