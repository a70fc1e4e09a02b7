"""Figures as functions of how often each identity counts; `bootstrap` resamples them.

Every figure here is a `Statistic`: it takes weights of identities [R, I] and returns [R]. With weights of 1
it is the plain figure. Scores are similarities: a comparison is accepted if its score is *above* a threshold,
and a threshold is the highest score that must be rejected, so that ties with an impostor are rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparface.evaluation.bootstrap import Statistic

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MARGIN, _LEAST = 20, 1_000
"""Impostor scores that are looked at first: this many times the share that may be accepted, at least so many.
In most replicates no more are needed."""
_FEW = 1 << 16
"""Pairs that are summed one by one; more are counted for each pair of identities first."""


def mean(values: npt.ArrayLike, owner: Ints, identities: int) -> Statistic:
    """The mean of one value [N] per face, where `owner` [N] is the face's identity."""
    sums = np.bincount(owner, np.asarray(values, np.float64), identities)
    counts = np.bincount(owner, minlength=identities).astype(np.float64)
    return lambda weights: _ratio(weights @ sums, weights @ counts)


@dataclass(frozen=True)
class Impostors:
    """Scores that must not be accepted, in descending order, and the identities of the faces compared."""

    scores: Floats
    first: Ints
    second: Ints | None = None
    """None if each score is one of a face, not of a pair."""

    @classmethod
    def of(cls, scores: Floats, first: Ints, second: Ints | None = None) -> Impostors:
        """Sort the scores [N] of faces or pairs. `first` and `second` [N] are identities."""
        order = np.argsort(-scores, kind="stable")
        return cls(scores[order], first[order], None if second is None else second[order])

    def weights(self, weights: Floats, count: int | None = None) -> Floats:
        """The weights [R, count] of the `count` highest scores; default: of all."""
        found = weights[:, self.first[:count]]
        return found if self.second is None else found * weights[:, self.second[:count]]

    def threshold(self, weights: Floats, share: float) -> Floats:
        """The threshold [R] above which at most `share` of the scores are: the lowest one.

        It is −∞ if all may be accepted, and NaN if there are no scores.
        """
        total = self._total(weights)
        count = min(len(self.scores), max(_LEAST, int(_MARGIN * share * len(self.scores))))
        while True:
            head = self.scores[:count]
            ends = np.flatnonzero(np.append(np.diff(head) < 0, True)) if count else np.zeros(0, np.int64)
            accepted = _ratio(np.cumsum(self.weights(weights, count), axis=1)[:, ends], total[:, None])
            allowed = (accepted <= share).sum(axis=1)
            if count == len(self.scores) or allowed.max(initial=0) < len(ends) - 1:
                break
            count = min(len(self.scores), 8 * count)
        found = np.append(head[ends], -np.inf)[allowed]
        return np.where(total > 0, found, np.nan)

    def _total(self, weights: Floats) -> Floats:
        """The weight [R] of all scores."""
        if self.second is None or len(self.scores) <= _FEW:
            return np.asarray(self.weights(weights).sum(axis=1))
        return np.asarray((weights @ self._counts(weights.shape[1]) * weights).sum(axis=1))

    def _counts(self, identities: int) -> Floats:
        """How many scores there are of each pair of identities: [I, I]."""
        assert self.second is not None
        both = np.bincount(self.first * identities + self.second, minlength=identities**2)
        return both.reshape(identities, identities).astype(np.float64)


def accepted(scores: Floats, owner: Ints, impostors: Impostors, share: float) -> Statistic:
    """The share of genuine scores [N] accepted at the threshold where `share` of the impostors are: TAR at
    FAR, or TPIR at FPIR. `owner` [N] is the identity of each genuine score."""
    order = np.argsort(-scores, kind="stable")
    falling, owner = -scores[order], owner[order]

    def statistic(weights: Floats) -> Floats:
        threshold = impostors.threshold(weights, share)
        sums = np.cumsum(weights[:, owner], axis=1)
        sums = np.concatenate([np.zeros((len(weights), 1)), sums], axis=1)
        above = np.searchsorted(falling, -threshold, side="left")
        found = _ratio(sums[np.arange(len(weights)), above], sums[:, -1])
        return np.where(np.isnan(threshold), np.nan, found)

    return statistic


def average(statistics: list[Statistic]) -> Statistic:
    """The mean of several statistics, for example of several drawn galleries."""
    return lambda weights: np.asarray(np.mean([one(weights) for one in statistics], axis=0), np.float64)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Divide; NaN for a division by zero."""
    below = np.broadcast_to(below, above.shape)
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))


@dataclass(frozen=True)
class Pairs:
    """Verified pairs, in ascending order of distance: ground truth and the identities of both faces."""

    distance: Floats
    same: npt.NDArray[np.bool_]
    first: Ints
    second: Ints

    @classmethod
    def of(cls, distance: Floats, same: npt.NDArray[np.bool_], first: Ints, second: Ints) -> Pairs:
        """Sort the pairs [N]."""
        order = np.argsort(distance, kind="stable")
        return cls(distance[order], same[order], first[order], second[order])

    def weights(self, weights: Floats) -> Floats:
        """The weights [R, N] of the pairs."""
        one, other = weights[:, self.first], weights[:, self.second]
        return np.where(self.first == self.second, one, one * other)

    def curve(self, weights: Floats) -> tuple[Floats, Floats]:
        """The ROC of each replicate: FAR and TAR, both [R, points], from accepting nothing to all."""
        of_pairs = self.weights(weights)
        last = np.flatnonzero(np.append(np.diff(self.distance) > 0, True))
        rates = []
        for kind in (~self.same, self.same):
            sums = np.cumsum(of_pairs * kind, axis=1)
            points = np.concatenate([np.zeros((len(sums), 1)), sums[:, last]], axis=1)
            rates.append(_ratio(points, sums[:, -1:]))
        return rates[0], rates[1]

    def auc(self, weights: Floats) -> Floats:
        """Area under the ROC."""
        far, tar = self.curve(weights)
        return np.asarray(np.sum(np.diff(far, axis=1) * (tar[:, 1:] + tar[:, :-1]), axis=1) / 2)

    def eer(self, weights: Floats) -> Floats:
        """Equal error rate, interpolated linearly between the nearest two points of the ROC."""
        far, tar = self.curve(weights)
        gap = far + tar - 1.0
        right = np.argmax(gap >= 0, axis=1)[:, None]
        left = np.maximum(right - 1, 0)
        before, after = (np.take_along_axis(gap, side, axis=1) for side in (left, right))
        low, high = (np.take_along_axis(far, side, axis=1) for side in (left, right))
        share = np.divide(-before, after - before, out=np.ones_like(after), where=after > before)
        return np.where(np.isnan(gap[:, -1]), np.nan, (low + share * (high - low))[:, 0])

    def tar_at(self, share: float) -> Statistic:
        """The highest TAR of a threshold whose FAR is at most `share`."""

        def statistic(weights: Floats) -> Floats:
            far, tar = self.curve(weights)
            found = np.where(far <= share, tar, 0.0).max(axis=1)
            return np.where(np.isnan(far[:, 0] + tar[:, 0]), np.nan, found)

        return statistic


def accuracy(right: npt.ArrayLike, folds: Ints, first: Ints, second: Ints) -> Statistic:
    """Mean over the folds of the share of pairs [N] that are decided correctly, at thresholds that stay.

    Folds that a replicate has no pair of are left out of its mean.
    """
    pairs = Pairs(np.zeros(len(folds)), np.asarray(right, np.bool_), first, second)
    member = (folds[:, None] == np.unique(folds)).astype(np.float64)

    def statistic(weights: Floats) -> Floats:
        of_pairs = pairs.weights(weights)
        shares = _ratio((of_pairs * pairs.same) @ member, of_pairs @ member)
        defined = ~np.isnan(shares)
        return _ratio(np.where(defined, shares, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))

    return statistic
