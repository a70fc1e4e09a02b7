"""95 % intervals by bootstrap over identities.

Faces of one person succeed and fail together, so the people are resampled, not the faces or pairs: a
replicate draws as many people as there are, with replacement. Somebody drawn k times counts like k different
people: a face weighs k, a pair of this person's faces weighs k, and a pair of people drawn k and l times
weighs k·l. (A person is never compared with a copy of the same person.) This is the bootstrap of U-statistics
by vertices; see Fogliato, Patil & Perona, "Confidence Intervals for Error Rates in 1:1 Matching Tasks",
IJCV 2024.

The draws depend on the seed, the number of identities and the number of replicates only. So two recognizers
that are measured on the same people have *paired* replicates, and the interval of their difference is that
of the differences of their replicates (`difference`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Maps how often each identity was drawn, [R, identities], to the statistic of each replicate, [R]; NaN where
it is not defined, for example if a replicate has nobody with two faces."""

REPLICATES = 1_000
SEED = 0
_AT_ONCE = 50
"""Replicates that are passed to a statistic at once; bounds its memory."""
_LOW, _HIGH = 0.025, 0.975


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval."""

    value: float
    low: float
    high: float
    replicates: Floats
    """[R]: the statistic in every replicate; NaN where it is not defined."""


def bootstrap(
    statistic: Statistic, identities: int, *, replicates: int = REPLICATES, seed: int = SEED
) -> Estimate:
    """Estimate a statistic of `identities` people and its interval (2.5 % and 97.5 % of the replicates).

    `weighted.py` has statistics. The interval is NaN if the statistic is not defined in any replicate.
    """
    drawn = multiplicities(identities, replicates, seed)
    parts = [statistic(drawn[first : first + _AT_ONCE]) for first in range(0, replicates, _AT_ONCE)]
    return estimate(float(statistic(np.ones((1, identities)))[0]), np.concatenate(parts))


def without_interval(statistic: Statistic, identities: int) -> Estimate:
    """Estimate a statistic of `identities` people for which drawing other people gives no interval."""
    return estimate(float(statistic(np.ones((1, identities)))[0]), np.full(REPLICATES, np.nan))


def multiplicities(identities: int, replicates: int = REPLICATES, seed: int = SEED) -> Floats:
    """How often each identity is drawn: [replicates, identities]; each row sums to `identities`."""
    rng = np.random.default_rng(seed)
    shares = np.full(identities, 1 / identities)
    return rng.multinomial(identities, shares, size=replicates).astype(np.float64)


def estimate(value: float, replicates: Floats) -> Estimate:
    """An estimate from the statistic and its replicates [R]."""
    defined = replicates[~np.isnan(replicates)]
    low, high = np.quantile(defined, [_LOW, _HIGH]) if len(defined) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), replicates)


def centred(found: Estimate) -> Estimate:
    """The same estimate with its replicates moved to its value.

    For a distance between samples, which depends on how many different people are in them: replicates have
    fewer, so their mean is off, but they spread as the distance does.
    """
    moved = found.replicates - np.nanmean(found.replicates) + found.value
    return estimate(found.value, moved.clip(min=0))


def difference(first: Estimate, second: Estimate) -> Estimate:
    """The paired difference first − second of two estimates over the same identities, in the same order.

    Raises ValueError if they have different numbers of replicates.
    """
    return estimate(first.value - second.value, first.replicates - second.replicates)
