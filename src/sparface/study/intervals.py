"""Means over seeds and paired differences, with 95 % intervals.

Two things vary: the training, from seed to seed, and the people that a recognizer is tested on. The variance
of a mean is the sum of both: s²/n over n seeds, with n − 1 degrees of freedom, and the variance of the
bootstrap over identities that evaluations store. The interval is Student's t with the degrees of freedom of
Welch and Satterthwaite. Without a bootstrap it is over seeds only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

LEVEL = 0.95
NORMAL = 1e9
"""Degrees of freedom of what is practically a normal distribution."""
FEWEST_REPLICATES = 20
"""A bootstrap with fewer defined replicates has no variance to speak of."""


@dataclass(frozen=True)
class Measured:
    """A figure of one run."""

    value: float
    replicates: npt.NDArray[np.float64] | None = None
    """[R]: the figure in each replicate of the bootstrap over identities; NaN where it is not defined."""
    people: str = ""
    """Identifies the people and the draws; only replicates of the same ones are paired."""

    def minus(self, other: Measured) -> Measured:
        """Return the difference, with paired replicates if both were measured on the same people."""
        if self.replicates is None or other.replicates is None or self.people != other.people:
            return Measured(self.value - other.value)
        return Measured(self.value - other.value, self.replicates - other.replicates, self.people)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, which is infinite if nothing is known of its variance."""

    mean: float
    low: float
    high: float
    spread: float
    """Standard deviation between seeds; NaN with one seed."""
    seeds: int
    identities: bool
    """Whether the interval includes the variation between identities."""


def estimate(values: Sequence[Measured]) -> Estimate:
    """Estimate the mean of one figure per seed. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    found, count = np.array([one.value for one in values]), len(values)
    mean, spread = float(found.mean()), float(found.std(ddof=1)) if count > 1 else math.nan
    of_people = _variance_over_identities(values)
    of_seeds = spread**2 / count if count > 1 else 0.0
    if count == 1 and of_people is None:
        return Estimate(mean, -math.inf, math.inf, math.nan, 1, False)
    variance = of_seeds + (of_people or 0.0)
    freedom = (count - 1) * (variance / of_seeds) ** 2 if of_seeds else NORMAL
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance)
    return Estimate(mean, mean - half, mean + half, spread, count, of_people is not None)


def difference(first: Mapping[int, Measured], second: Mapping[int, Measured]) -> Estimate | None:
    """Estimate the mean of `first` − `second` over the seeds that both have; None if they share none."""
    shared = sorted(first.keys() & second.keys())
    return estimate([first[seed].minus(second[seed]) for seed in shared]) if shared else None


def _variance_over_identities(values: Sequence[Measured]) -> float | None:
    """Variance of the mean over seeds between replicates; None unless all seeds have paired replicates."""
    replicates = [one.replicates for one in values if one.replicates is not None]
    if len(replicates) < len(values) or len({one.people for one in values}) > 1:
        return None
    means = np.mean(replicates, axis=0)
    defined = means[np.isfinite(means)]
    return float(defined.var(ddof=1)) if defined.size >= FEWEST_REPLICATES else None
