"""Identification: who is on a photo, given a gallery of enrolled people. Arithmetic only.

Scores are cosines between embeddings. A person's score is that of the *nearest* gallery image, or that of the
*mean* of the gallery images' embeddings. A tie with another person counts as an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparface.evaluation.bootstrap import Statistic
from sparface.evaluation.settings import Template
from sparface.evaluation.weighted import Impostors, accepted, mean

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FAR = 1e-3
FPIRS = (0.01, 0.1)
RANKS = (1, 5)


@dataclass(frozen=True)
class Matches:
    """Scores of probes against the people of a gallery."""

    scores: Floats
    """[probes, people]"""
    people: Ints
    """[people]: the identity of each column, ascending."""
    probes: Ints
    """[probes]: the identity of each row; it need not be among the people."""

    @property
    def own(self) -> Bools:
        """[probes, people]: whether the probe is of this person."""
        return np.asarray(self.probes[:, None] == self.people)

    @property
    def enrolled(self) -> Bools:
        """[probes]: whether the probe's person is in the gallery."""
        return np.isin(self.probes, self.people)

    def ranks(self) -> Ints:
        """[enrolled probes]: rank of the probe's person, from 1; people with the same score rank first."""
        scores, own = self.scores[self.enrolled], self.own[self.enrolled]
        return np.asarray((scores >= scores[own][:, None]).sum(axis=1))

    def part(self, rows: Bools) -> Matches:
        """The matches of some probes."""
        return Matches(self.scores[rows], self.people, self.probes[rows])


def match(
    gallery: Floats, gallery_identities: Ints, probes: Floats, probe_identities: Ints, template: Template
) -> Matches:
    """Compare probes [n, E] with gallery images [m, E]; identities are [n] and [m].

    Raises ValueError if there are no gallery images.
    """
    if not len(gallery):
        raise ValueError("identification needs a gallery of at least one image")
    order = np.argsort(gallery_identities, kind="stable")
    people, starts = np.unique(gallery_identities[order], return_index=True)
    rows = unit(gallery[order])
    if template == "mean":
        scores = unit(probes) @ unit(np.add.reduceat(rows, starts, axis=0)).T
    else:
        scores = np.maximum.reduceat(unit(probes) @ rows.T, starts, axis=1)
    return Matches(scores, people, probe_identities)


def unit(rows: Floats) -> Floats:
    """Scale rows [..., E] to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))


def statistics(matches: Matches, identities: int) -> dict[str, Statistic]:
    """The figures of some probes, as functions of how often each of `identities` people counts.

    - `rank_1`, `rank_5`: share of enrolled probes whose own person is among the best so many
    - `tar_at_far_0.001`: share of enrolled probes whose own score is above a threshold that at most 1 in
      1,000 comparisons of a probe with another person exceeds
    - `tpir_at_fpir_0.01`, `…_0.1`, if some probes' people are not enrolled: share of enrolled probes whose
      own score is the best one and above a threshold that the best scores of at most so many strangers'
      probes exceed. (1 − TPIR is NIST's FNIR.)

    Missing if there is no probe that it could be measured on.
    """
    enrolled = matches.enrolled
    if not enrolled.any():
        return {}
    owner, genuine = matches.probes[enrolled], matches.scores[matches.own]
    known = [rank for rank in RANKS if rank == 1 or rank < len(matches.people)]
    found = {f"rank_{rank}": among_best(matches, rank, identities) for rank in known}
    if len(matches.people) > 1:
        found[f"tar_at_far_{FAR}"] = accepted(genuine, owner, impostors(matches), FAR)
    if not enrolled.all():
        best = np.where(matches.ranks() == 1, genuine, -np.inf)
        found |= {f"tpir_at_fpir_{fpir}": accepted(best, owner, strangers(matches), fpir) for fpir in FPIRS}
    return found


def among_best(matches: Matches, rank: int, identities: int) -> Statistic:
    """Share of the enrolled probes whose own person is among the `rank` best."""
    return mean(matches.ranks() <= rank, matches.probes[matches.enrolled], identities)


def impostors(matches: Matches) -> Impostors:
    """All comparisons of a probe with another person."""
    row, column = np.nonzero(~matches.own)
    return Impostors.of(matches.scores[row, column], matches.probes[row], matches.people[column])


def strangers(matches: Matches) -> Impostors:
    """The best score of each probe whose person is not enrolled."""
    unknown = ~matches.enrolled
    return Impostors.of(matches.scores[unknown].max(axis=1), matches.probes[unknown])


def det(matches: Matches) -> dict[str, list[float]]:
    """The DET curve of open-set identification: FPIR and FNIR (1 − TPIR), one point per distinct threshold.

    From rejecting all to accepting all.
    """
    enrolled = matches.enrolled
    hits = np.sort(matches.scores[matches.own][matches.ranks() == 1])
    false = np.sort(matches.scores[~enrolled].max(axis=1))
    thresholds = np.unique(np.concatenate([hits, false]))[::-1]
    fpir = 1 - np.searchsorted(false, thresholds, side="left") / len(false)
    fnir = 1 - (len(hits) - np.searchsorted(hits, thresholds, side="left")) / enrolled.sum()
    return {"fpir": [0.0, *fpir.tolist()], "fnir": [1.0, *fnir.tolist()]}


@dataclass(frozen=True)
class Draw:
    """Which faces are enrolled and which are probes, by their index."""

    enrolled: Ints
    probes: Ints


def draw(
    identity: Ints, pool: Ints, images: int, seed: int, *, hold_out: bool, unenrolled: Sequence[int] = ()
) -> list[Draw]:
    """Draw nested galleries of 1 to `images` images per person from a `pool` of faces.

    `identity` [N] is the identity of every face, `pool` the indices of the faces that may be enrolled. With
    `hold_out`, the faces of the pool that are not in the largest gallery are the probes of all galleries,
    and a person with too few faces for that enrols all but one, or the only one. People in `unenrolled` are
    not enrolled.
    """
    rng = np.random.default_rng(seed)
    shuffled = pool[rng.permutation(len(pool))]
    galleries: list[list[int]] = [[] for _ in range(images)]
    probes: list[int] = []
    for person in np.unique(identity[pool]):
        own = shuffled[identity[shuffled] == person].tolist()
        most = 0 if person in unenrolled else min(images, max(1, len(own) - hold_out))
        for number, gallery in enumerate(galleries, 1):
            gallery += own[: min(number, most)]
        probes += own[most:] if hold_out else []
    held = np.sort(np.array(probes, np.int64))
    return [Draw(np.array(sorted(gallery), np.int64), held) for gallery in galleries]
