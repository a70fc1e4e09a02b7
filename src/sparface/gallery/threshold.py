"""The score that a face must exceed to be named; otherwise it is a stranger's.

The user sets the share of strangers who may be given a name (FPIR, false positive identification rate).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from sparface.errors import UserError
from sparface.evaluation.identification import match, strangers

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FEWEST_PEOPLE = 5
"""Enrolled people from whose comparisons a threshold can be estimated: 10 pairs."""


@dataclass(frozen=True)
class Threshold:
    """A threshold for cosines, and what it is based on."""

    value: float
    basis: str


def measured(
    gallery: Floats, person: Ints, others: Floats, owner: Ints, identities: int, fpir: float
) -> Threshold:
    """The lowest threshold at which at most `fpir` of the faces of other people are given a name.

    `gallery` [N, E] and `person` [N] are the enrolled photos; `others` [M, E] and `owner` [M] are faces of
    `identities` people who are not enrolled.
    """
    matches = match(gallery, person, others, owner + person.max() + 1, "nearest")
    everyone = np.ones((1, int(matches.probes.max()) + 1))
    value = float(strangers(matches).threshold(everyone, fpir)[0])
    basis = f"{fpir:.3g} of {len(others):,} faces of {identities:,} other people would be given a name"
    return Threshold(max(value, -1.0), basis)


def estimated(gallery: Floats, person: Ints, fpir: float) -> Threshold:
    """Estimate the threshold from the scores of enrolled photos with other enrolled people.

    A stranger's score with each of P people may exceed the threshold with probability 1 − (1 − fpir)^(1/P).
    Few people do not have scores as high as that, so the threshold is the upper prediction bound for one more
    score of a normal distribution, of which n were seen with mean m and standard deviation s:
    m + t(n − 1) · s · √(1 + 1/n), with Student's quantile t (Meeker, Hahn and Escobar, Statistical Intervals,
    2nd ed. 2017, section 4.6). Its share of strangers is right on average over galleries of any size, where
    the normal quantile lets too many through. n is the number of pairs of people: several photos of a person
    say little more than one. Raises `UserError` for fewer than `FEWEST_PEOPLE` people.
    """
    people = int(person.max()) + 1
    if people < FEWEST_PEOPLE:
        raise UserError(
            f"enrol: {people} people are too few to tell strangers from; "
            "give --calibrate with a shard set of other people, or --threshold"
        )
    matches = match(gallery, person, gallery, person, "nearest")
    scores = matches.scores[~matches.own]
    pairs = people * (people - 1) // 2
    single = 1 - (1 - fpir) ** (1 / people)
    spread = scores.std() * sqrt((pairs + 1) / (pairs - 1))
    value = float(scores.mean() + stdtrit(pairs - 1, 1 - single) * spread)
    basis = f"estimated from {pairs:,} pairs of enrolled people, for FPIR {fpir:.3g}"
    return Threshold(float(np.clip(value, -1, 1)), basis)
