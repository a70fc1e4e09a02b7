"""The score that a face must exceed to be named; otherwise it is a stranger's.

The user sets the share of strangers who may be given a name (FPIR, false positive identification rate).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

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
    """Estimate the threshold from the scores between different enrolled people.

    Few people do not have scores as high as those that matter, so a normal distribution is fitted: for P
    people, a single score may exceed the threshold with probability 1 − (1 − fpir)^(1/P). Raises `UserError`
    for fewer than `FEWEST_PEOPLE` people.
    """
    people = int(person.max()) + 1
    if people < FEWEST_PEOPLE:
        raise UserError(
            f"enrol: {people} people are too few to tell strangers from; "
            "give --calibrate with a shard set of other people, or --threshold"
        )
    scores = (gallery @ gallery.T)[person[:, None] < person]
    single = 1 - (1 - fpir) ** (1 / people)
    value = float(scores.mean() + NormalDist().inv_cdf(1 - single) * scores.std())
    basis = f"estimated from {len(scores):,} comparisons between enrolled people, for FPIR {fpir:.3g}"
    return Threshold(float(np.clip(value, -1, 1)), basis)
