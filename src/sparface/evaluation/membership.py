"""Membership inference: can one tell from a recognizer whose photos it was trained on?

Two attacks. `score`: photos of somebody who was trained on are more alike for the recognizer, so a photo's
mean cosine to the other photos of the person is compared with a threshold (Yeom et al. 2018, with the cosine
for the loss). `lira`: the same score, but in comparison with what it is in shadow recognizers, some of which
were trained on the photo and some not (the likelihood ratio of Carlini et al. 2022).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from sparface.errors import UserError
from sparface.evaluation.bootstrap import Statistic
from sparface.evaluation.embed import Image, embed, pixels_digest, require_finite
from sparface.evaluation.identification import unit
from sparface.evaluation.recognizers import open_recognizer, usable_device
from sparface.evaluation.results import (
    document_name,
    estimates,
    figures,
    percent,
    provenance,
    require_outputs,
    store,
)
from sparface.evaluation.weighted import Pairs
from sparface.progress import track
from sparface.shards.format import Face
from sparface.shards.set import ShardSet

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FPR = 0.01
LEAST_SPREAD = 1e-3
"""Least standard deviation of scores over shadow recognizers."""
_LARGEST = 0.999999
"""Cosines are cut to this before their inverse hyperbolic tangent, which makes them nearly normal."""


@dataclass(frozen=True)
class Candidates:
    """The faces of both sets whose membership is guessed: those of people with two or more in their set."""

    sets: tuple[ShardSet, ShardSet]
    """Members and others."""
    pictures: list[bytes]
    """[N]: digests of the pixels, by which the faces are found in shadow sets."""
    people: list[str]
    """The people, sorted."""
    owner: npt.NDArray[np.int64]
    """[N]: index in `people`."""
    member: Bools
    """[N]: whether the recognizer was trained on it."""

    def images(self) -> Iterator[Image]:
        """Read the faces again: they need not fit into memory."""
        for shard_set in self.sets:
            yield from (face.image for face in _grouped(shard_set))


def evaluate_membership(
    recognizer: Path,
    members: Path,
    others: Path,
    *,
    shadows: Sequence[Path] = (),
    shadow_sets: Sequence[Path] = (),
    json_out: Path | None = None,
) -> dict[str, Any]:
    """Attack the privacy of a recognizer's training set.

    `members` are faces that it was trained on, and `others` faces like them that it was not trained on. Each
    of the `shadows` is a recognizer that was trained like it on the set in `shadow_sets`, which has some of
    these faces.

    Figures for each attack, `score` and with shadows `lira`, with a 95 % interval by bootstrap over people:
    `ATTACK/auc`, and `ATTACK/tpr_at_fpr_0.01`, the share of members who are found when 1 in 100 others is
    taken for one. 0.5 and 0.01 are chance. Returns the document (see `results`), with the curves as `roc`.
    Raises `UserError` if something cannot be opened or used.
    """
    started = time.monotonic()
    if len(shadows) != len(shadow_sets):
        raise UserError(
            f"--shadows: {len(shadows)} recognizers, but {len(shadow_sets)} --shadow_sets; give one set each"
        )
    opened = open_recognizer(recognizer, device := usable_device())
    require_outputs(opened, json_out)
    candidates = gather(member_set := ShardSet.open(members), other_set := ShardSet.open(others))
    own = scores(opened.network, candidates)
    attacks = {"score": own}
    if shadows:
        inside = np.stack([contains(ShardSet.open(folder), candidates) for folder in shadow_sets])
        of_shadows = [scores(open_recognizer(path, device).network, candidates) for path in shadows]
        attacks["lira"] = likelihood_ratios(own, np.stack(of_shadows), inside)
    curves = {name: roc(values, candidates) for name, values in attacks.items()}
    statistics: dict[str, Statistic] = {f"{name}/auc": pairs.auc for name, pairs in curves.items()}
    statistics |= {f"{name}/tpr_at_fpr_{FPR:g}": pairs.tar_at(FPR) for name, pairs in curves.items()}
    document = {
        "kind": "membership",
        "name": document_name("membership", member_set.manifest.name),
        **figures(estimates(statistics, len(candidates.people)), candidates.people),
        "roc": {name: points(pairs, len(candidates.people)) for name, pairs in curves.items()},
        "provenance": provenance(opened, member_set)
        | {"others": str(other_set.folder), "others_digest": other_set.digest}
        | {"members": int(candidates.member.sum()), "non_members": int((~candidates.member).sum())}
        | {"shadows": len(shadows), "compared": {name: len(pairs.same) for name, pairs in curves.items()}}
        | {"seconds": round(time.monotonic() - started, 1)},
    }
    store(document, opened, member_set, json_out)
    return document


def gather(members: ShardSet, others: ShardSet) -> Candidates:
    """Read the faces of both sets. Raises `UserError` if a set has nobody with two faces, if sizes differ, or
    if a face is in both."""
    if members.manifest.size != others.manifest.size:
        raise UserError(f"{others.folder}: has faces of another size than {members.folder}")
    names: list[str] = []
    pictures: list[list[bytes]] = []
    for shard_set in (members, others):
        if max(shard_set.manifest.identities.values()) < 2:
            raise UserError(f"{shard_set.folder}: has nobody with two or more faces; give a larger set")
        found = [(face.identity, pixels_digest(face.image)) for face in _grouped(shard_set)]
        names += [name for name, _ in found]
        pictures.append([picture for _, picture in found])
    if shared := len({*pictures[0]} & {*pictures[1]}):
        raise UserError(f"{others.folder}: {shared} of its faces are in {members.folder}, too; remove them")
    people = sorted(set(names))
    index = {name: number for number, name in enumerate(people)}
    member = np.arange(len(names)) < len(pictures[0])
    owner = np.array([index[name] for name in names])
    return Candidates((members, others), pictures[0] + pictures[1], people, owner, member)


def _grouped(shard_set: ShardSet) -> Iterator[Face]:
    """The faces of people with two or more."""
    counts = shard_set.manifest.identities
    return (face for face in shard_set.faces() if counts[face.identity] > 1)


def scores(network: nn.Module, candidates: Candidates) -> Floats:
    """The mean cosine [N] of each face to the other faces of its person in its set, as Fisher's z. Raises
    `UserError` if an embedding is not finite."""
    faces = track(enumerate(candidates.images()), total=len(candidates.member), unit="faces")
    found = embed(network, faces)
    require_finite({f"face {place}": row for place, row in found.items()})
    embeddings = unit(np.stack(list(found.values())).astype(np.float64))
    _, group = np.unique(candidates.owner * 2 + candidates.member, return_inverse=True)
    sums = np.zeros((group.max() + 1, embeddings.shape[1]))
    np.add.at(sums, group, embeddings)
    counts = np.bincount(group)[group]
    cosine = ((sums[group] * embeddings).sum(axis=1) - 1) / (counts - 1)
    return np.asarray(np.arctanh(cosine.clip(-_LARGEST, _LARGEST)))


def contains(shadow_set: ShardSet, candidates: Candidates) -> Bools:
    """Which of the candidates [N] are in the set."""
    known = {pixels_digest(face.image) for face in shadow_set.faces()}
    return np.array([picture in known for picture in candidates.pictures])


def likelihood_ratios(own: Floats, shadows: Floats, inside: Bools) -> Floats:
    """The log likelihood ratio [N] of each face's score `own` [N] with and without the face in training, from
    its scores in shadow recognizers [S,N], of which those `inside` [S,N] were trained on it.

    Both are normal distributions with a mean for each face and one spread for all faces, as there are few
    shadows. NaN for a face that is in all shadow sets or in none. Raises `UserError` if all are.
    """
    logs = []
    for chosen in (inside, ~inside):
        counts = chosen.sum(axis=0)
        means = np.divide(
            (shadows * chosen).sum(axis=0), counts, out=np.full(own.shape, np.nan), where=counts > 0
        )
        deviations = np.where(chosen, shadows - means, 0.0)[:, counts > 0]
        degrees = max(int((counts[counts > 0] - 1).sum()), 1)
        spread = max(float(np.sqrt((deviations**2).sum() / degrees)), LEAST_SPREAD)
        logs.append(-((own - means) ** 2) / (2 * spread**2) - np.log(spread))
    found = np.asarray(logs[0] - logs[1])
    if np.isnan(found).all():
        raise UserError(
            "--shadow_sets: each face is in all of them or in none; train shadows on different parts"
        )
    return found


def roc(values: Floats, candidates: Candidates) -> Pairs:
    """The curve of an attack, without faces that it cannot judge."""
    known = ~np.isnan(values)
    owner = candidates.owner[known]
    return Pairs.of(-values[known], candidates.member[known], owner, owner)


def points(pairs: Pairs, people: int) -> dict[str, list[float]]:
    """The ROC as the document has it: false and true positive rates."""
    far, tar = (rates[0].round(6).tolist() for rates in pairs.curve(np.ones((1, people))))
    return {"fpr": far, "tpr": tar}


def summary(document: dict[str, Any]) -> str:
    """Summarise an evaluation in a few lines of text."""
    found, of = document["figures"], document["provenance"]
    lines = []
    for name in document["roc"]:
        low, high = document["intervals"][f"{name}/auc"]
        between = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        rate = percent(document, f"{name}/tpr_at_fpr_{FPR:g}")
        lines.append(f"{name:<6} AUC {found[f'{name}/auc']:.3f}{between}  TPR at FPR {FPR:.0%}: {rate}")
    lines.append(
        f"chance: 0.5 and {FPR:.0%}; {of['members']} members and {of['non_members']} others of "
        f"{document['bootstrap']['identities']} people; {of['shadows']} shadows; recognizer {of['run']}"
    )
    return "\n".join(lines)
