"""Scores of verification: distances, K-fold accuracy, the ROC and what is read off it.

A pair is accepted as "same" if its distance is at most the threshold. FAR is the share of different
pairs that are accepted, TAR the share of same pairs that are. Everything is exact: all thresholds that
make a difference are tried.
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
    """Distance of each row of `first` to the same row of `second`, both [N, E] → [N].

    `euclidean` is ‖a − b‖, in [0, 2] for unit-norm embeddings, as the paper has it; `cosine` is
    1 − cos(a, b), in [0, 2]. On unit-norm embeddings cosine is half the square of euclidean, so both
    order pairs alike and give the same accuracy and ROC, at other thresholds.
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
        """Equal error rate: FAR where FAR = 1 − TAR, linear between the two points around it."""
        gap = self.far + self.tar - 1.0
        right = int(np.argmax(gap >= 0))
        if right == 0 or gap[right] == 0:
            return float(self.far[right])
        share = -gap[right - 1] / (gap[right] - gap[right - 1])
        return float(self.far[right - 1] + share * (self.far[right] - self.far[right - 1]))

    def tar_at(self, far: float = FAR) -> float:
        """The highest TAR of a threshold whose FAR is at most `far`: a step, not interpolated.

        With fewer than 1/far different pairs, FAR's smallest step is larger than `far`, so this is
        the TAR at no false accept at all: a figure that rests on the single closest different pair.
        """
        return float(self.tar[self.far <= far].max())

    def corners(self) -> Roc:
        """The same curve without the points inside its straight runs: all that a picture needs."""
        along_far, along_tar = np.diff(self.far) > 0, np.diff(self.tar) > 0
        diagonal = along_far & along_tar
        turns = (along_far[1:] != along_far[:-1]) | diagonal[1:] | diagonal[:-1]
        keep = np.concatenate([[True], turns, [True]])
        return Roc(self.thresholds[keep], self.far[keep], self.tar[keep])


def roc(distance: Floats, same: Bools) -> Roc:
    """ROC of distances [N] and truth [N]; both kinds must occur, distances must be finite (ValueError)."""
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
    """The threshold with the highest accuracy on these pairs, exactly, over all candidates.

    Candidates are the midpoints between neighbouring distinct distances, and one outside either end.
    Of several equally good ones the middle one is taken.
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
    """The figures of one protocol under one distance."""

    accuracy: float
    """Mean accuracy of the folds, each at the threshold that is best on the other folds."""
    standard_error: float
    """Standard deviation of the folds' accuracies (n − 1) / √folds, as LFW reports it."""
    fold_accuracies: Floats
    fold_thresholds: Floats
    roc: Roc
    same: int
    different: int

    def figures(self) -> dict[str, float]:
        """The figures by name, as metrics and JSON have them."""
        return {
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "auc": self.roc.auc,
            "eer": self.roc.eer,
            "tar_at_far_0.001": self.roc.tar_at(FAR),
            "threshold": float(self.fold_thresholds.mean()),
        }


def verify_pairs(distance: Floats, same: Bools, folds: Ints) -> Verification:
    """Evaluate a protocol: distances [N], truth [N] and fold numbers [N], at least two folds.

    Raises ValueError for one fold only, one kind of pair only, or a distance that is not finite.
    """
    curve = roc(distance, same)
    names = np.unique(folds)
    if len(names) < 2:
        raise ValueError("verification needs at least two folds: the threshold comes from the others")
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
