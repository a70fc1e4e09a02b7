"""Verification scores: distances, K-fold accuracy, the ROC and figures derived from it.

A pair is accepted as "same" if its distance is at most the threshold. FAR is the share of different pairs
that are accepted, TAR the share of same pairs that are accepted. All figures are exact: every threshold that
makes a difference is tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Metric = Literal["euclidean", "cosine"]

FAR = 1e-3


def distances(first: npt.ArrayLike, second: npt.ArrayLike, metric: Metric = "euclidean") -> Floats:
    """Return the distances [N] between corresponding rows of `first` and `second`, both [N, E].

    `euclidean` is ‖a − b‖, in [0, 2] for unit-norm embeddings, as in the paper; `cosine` is 1 − cos(a, b), in
    [0, 2]. For unit-norm embeddings cosine is half the square of euclidean, so both order pairs alike and
    give the same accuracy and ROC, at different thresholds.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if metric == "euclidean":
        return np.asarray(np.linalg.norm(a - b, axis=1), np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(1.0 - (a * b).sum(axis=1) / lengths, np.float64)


@dataclass(frozen=True)
class Roc:
    """The empirical ROC: one point per distinct distance, from accepting nothing to accepting all."""

    thresholds: Floats
    """Ascending; the first is below every distance."""
    far: Floats
    tar: Floats

    @property
    def auc(self) -> float:
        """Area under the curve: P(same closer than different), ties counted half."""
        return float(np.sum(np.diff(self.far) * (self.tar[1:] + self.tar[:-1])) / 2)

    @property
    def eer(self) -> float:
        """Equal error rate: FAR where FAR = 1 − TAR, interpolated linearly between the nearest two points."""
        gap = self.far + self.tar - 1.0
        right = int(np.argmax(gap >= 0))
        if right == 0 or gap[right] == 0:
            return float(self.far[right])
        share = -gap[right - 1] / (gap[right] - gap[right - 1])
        return float(self.far[right - 1] + share * (self.far[right] - self.far[right - 1]))

    def tar_at(self, far: float = FAR) -> float:
        """Return the highest TAR of any threshold whose FAR is at most `far`, without interpolation.

        With fewer than 1/far different pairs, the smallest step of FAR is larger than `far`. The result is
        then the TAR without any false accept, which depends on the closest different pair alone.
        """
        return float(self.tar[self.far <= far].max())

    def corners(self) -> Roc:
        """Return the same curve without the points inside straight segments, which a plot does not need."""
        along_far, along_tar = np.diff(self.far) > 0, np.diff(self.tar) > 0
        diagonal = along_far & along_tar
        turns = (along_far[1:] != along_far[:-1]) | diagonal[1:] | diagonal[:-1]
        keep = np.concatenate([[True], turns, [True]])
        return Roc(self.thresholds[keep], self.far[keep], self.tar[keep])


def roc(distance: Floats, same: Bools) -> Roc:
    """Compute the ROC from distances [N] and ground truth `same` [N].

    Raises ValueError if there is only one kind of pair or a distance is not finite.
    """
    _check(distance, same)
    order = np.argsort(distance, kind="stable")
    ordered, hits = distance[order], same[order].astype(np.int64)
    last = np.flatnonzero(np.append(np.diff(ordered) > 0, True))
    tar, accepted = np.cumsum(hits)[last], last + 1
    return Roc(
        thresholds=np.concatenate([[ordered[0] - 1.0], ordered[last]]),
        far=np.concatenate([[0.0], (accepted - tar) / (len(hits) - hits.sum())]),
        tar=np.concatenate([[0.0], tar / hits.sum()]),
    )


def best_threshold(distance: Floats, same: Bools) -> float:
    """Return the threshold with the highest accuracy on these pairs.

    Tries the midpoints between neighbouring distinct distances, and one value beyond each end. Of several
    equally good thresholds, the middle one is returned.
    """
    order = np.argsort(distance, kind="stable")
    ordered, hits = distance[order], same[order].astype(np.int64)
    cuts = np.flatnonzero(np.diff(ordered) > 0) + 1
    accepted = np.concatenate([[0], cuts, [len(hits)]])
    true_accepts = np.concatenate([[0], np.cumsum(hits)])[accepted]
    correct = true_accepts + (len(hits) - hits.sum()) - (accepted - true_accepts)
    best = np.flatnonzero(correct == correct.max())
    return float(_candidates(ordered, cuts)[best[len(best) // 2]])


def _candidates(ordered: Floats, cuts: Ints) -> Floats:
    below, above = ordered[cuts - 1], ordered[cuts]
    middle = below + (above - below) / 2
    # Between neighbouring floats the midpoint can round up to `above`, which would accept it.
    middle = np.where(middle < above, middle, below)
    return np.concatenate([[ordered[0] - 1.0], middle, [ordered[-1] + 1.0]])


@dataclass(frozen=True)
class Verification:
    """The figures of one protocol with one distance."""

    accuracy: float
    """Mean accuracy over the folds, each at the best threshold of the other folds."""
    standard_error: float
    """Standard deviation (n − 1) of the folds' accuracies / √folds, as LFW reports it."""
    fold_accuracies: Floats
    fold_thresholds: Floats
    roc: Roc
    same: int
    different: int

    def figures(self) -> dict[str, float]:
        """Return the figures by name, as in metrics and JSON."""
        return {
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "auc": self.roc.auc,
            "eer": self.roc.eer,
            "tar_at_far_0.001": self.roc.tar_at(FAR),
            "threshold": float(self.fold_thresholds.mean()),
        }


def verify_pairs(distance: Floats, same: Bools, folds: Ints) -> Verification:
    """Evaluate a protocol from distances [N], ground truth `same` [N] and fold numbers [N].

    Raises ValueError if there is only one fold or one kind of pair, or if a distance is not finite.
    """
    curve = roc(distance, same)
    names = np.unique(folds)
    if len(names) < 2:
        raise ValueError("verification needs at least two folds: a fold's threshold comes from the others")
    thresholds = np.array([best_threshold(distance[folds != f], same[folds != f]) for f in names])
    accuracies = np.array(
        [
            np.mean((distance[folds == f] <= threshold) == same[folds == f])
            for f, threshold in zip(names, thresholds, strict=True)
        ]
    )
    error = float(accuracies.std(ddof=1) / np.sqrt(len(names)))
    count = int(same.sum())
    return Verification(
        float(accuracies.mean()), error, accuracies, thresholds, curve, count, len(same) - count
    )


def _check(distance: Floats, same: Bools) -> None:
    if not np.isfinite(distance).all():
        raise ValueError(f"{int((~np.isfinite(distance)).sum())} of {len(distance)} distances are not finite")
    if same.all() or not same.any():
        raise ValueError("verification needs both same and different pairs")
