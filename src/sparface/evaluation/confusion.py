"""Figures of classification as functions of how often each identity counts (see `weighted.py`).

Everything is computed from a few counts per identity, so a bootstrap does not look at the faces again. The
conventions are those of scikit-learn with `zero_division=0`: a class that is never predicted has precision 0.
Means over classes leave out those that no face has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sparface.evaluation.bootstrap import Statistic

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BINS = 15
"""Bins of equal width for the calibration error, as in Guo et al. 2017."""
MOST_LISTED = 20
"""Maximum number of classes with figures of their own."""


@dataclass(frozen=True)
class Counts:
    """What a classifier did, per identity [I] and class [C]."""

    right: Floats
    """[I,C]: faces of a class that were recognized as such."""
    true: Floats
    """[I,C]: faces of a class."""
    predicted: Floats
    """[I,C]: faces that were taken for a class."""
    confusion: Ints
    """[C,C]: faces of all identities by true class, then predicted."""
    bins: Floats
    """[I,BINS,3]: number, sum of confidences, and number of right answers of the faces in each bin."""


def count(probabilities: Floats, truth: Ints, owner: Ints, identities: int) -> Counts:
    """Count the answers with the greatest of the `probabilities` [N,C] for faces of the classes `truth` [N]
    and the people `owner` [N]."""
    classes = probabilities.shape[1]
    answer, confidence = probabilities.argmax(1), probabilities.max(1)
    is_right = answer == truth
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)

    def table(columns: Ints, width: int, weights: npt.ArrayLike | None = None) -> Floats:
        found = np.bincount(owner * width + columns, weights, identities * width)
        return found.reshape(identities, width).astype(np.float64)

    bins = [table(place, BINS), table(place, BINS, confidence), table(place, BINS, is_right)]
    return Counts(
        table(truth, classes, is_right),
        table(truth, classes),
        table(answer, classes),
        np.bincount(truth * classes + answer, minlength=classes**2).reshape(classes, classes),
        np.stack(bins, 2),
    )


def statistics(counts: Counts, classes: Sequence[str]) -> dict[str, Statistic]:
    """The figures by name; with up to `MOST_LISTED` classes, also `CLASS/precision`, `CLASS/recall` and
    `CLASS/f1` for those that faces have."""
    found: dict[str, Statistic] = {"accuracy": partial(_accuracy, counts)}
    for name, score in SCORES.items():
        found[f"{name}_macro"] = partial(_macro, counts, score)
        found[f"{name}_weighted"] = partial(_weighted, counts, score)
    found["calibration_error"] = partial(_calibration_error, counts)
    listed = np.flatnonzero(counts.true.sum(0)).tolist() if len(classes) <= MOST_LISTED else ()
    for number in listed:
        for name, score in SCORES.items():
            found[f"{classes[number]}/{name}"] = partial(_of_class, counts, score, number)
    return found


def reliability(counts: Counts) -> Mapping[str, Any]:
    """The calibration by bins of confidence: number of faces, mean confidence and accuracy of each bin that
    is not empty."""
    number, confidence, right = counts.bins.sum(0).T
    full = number > 0
    return {
        "faces": number[full].astype(int).tolist(),
        "confidence": (confidence[full] / number[full]).tolist(),
        "accuracy": (right[full] / number[full]).tolist(),
    }


def _accuracy(counts: Counts, weights: Floats) -> Floats:
    return _share(weights @ counts.right.sum(1), weights @ counts.true.sum(1))


def _macro(counts: Counts, score: Score, weights: Floats) -> Floats:
    """The mean over the classes that faces have."""
    right, true, predicted = _tables(counts, weights)
    return _share((score(right, true, predicted) * (true > 0)).sum(1), (true > 0).sum(1).astype(np.float64))


def _weighted(counts: Counts, score: Score, weights: Floats) -> Floats:
    """The mean over the classes, weighted by their faces."""
    right, true, predicted = _tables(counts, weights)
    return _share((score(right, true, predicted) * true).sum(1), true.sum(1))


def _of_class(counts: Counts, score: Score, number: int, weights: Floats) -> Floats:
    """The score of one class; NaN where no face has it."""
    right, true, predicted = _tables(counts, weights, slice(number, number + 1))
    return np.where(true > 0, score(right, true, predicted), np.nan)[:, 0]


def _tables(counts: Counts, weights: Floats, part: slice = slice(None)) -> tuple[Floats, Floats, Floats]:
    """`right`, `true` and `predicted` [R,C] of each replicate."""
    right, true, predicted = (
        weights @ table[:, part] for table in (counts.right, counts.true, counts.predicted)
    )
    return right, true, predicted


def _calibration_error(counts: Counts, weights: Floats) -> Floats:
    """The expected calibration error: the mean over the faces of |accuracy − confidence| of their bin."""
    number, confidence, right = (weights @ table for table in np.moveaxis(counts.bins, 2, 0))
    return _share(np.abs(right - confidence).sum(1), number.sum(1))


def _share(above: Floats, below: Floats) -> Floats:
    """Divide; 0 for a division by zero."""
    return np.asarray(np.divide(above, below, out=np.zeros(above.shape), where=below > 0))


Score = Callable[[Floats, Floats, Floats], Floats]
"""Maps numbers of faces, `right`, `true` and `predicted` [R,C], to a score of each class [R,C]."""
SCORES: dict[str, Score] = {
    "precision": lambda right, true, predicted: _share(right, predicted),
    "recall": lambda right, true, predicted: _share(right, true),
    "f1": lambda right, true, predicted: _share(2 * right, true + predicted),
}
