"""Evaluate detection: whether what a purifier changes about a face tells that it was attacked."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface.attacks.goal import Goal, Scores, expected
from sparface.errors import UserError
from sparface.evaluation.attacked import Given, about, open_subject, open_trials
from sparface.evaluation.bootstrap import Statistic
from sparface.evaluation.purifiers import Purified, Randomly, seen_draws
from sparface.evaluation.recognizers import usable_device
from sparface.evaluation.results import estimates, figures, percent, require_outputs, store
from sparface.evaluation.robustness import Subject, Trial
from sparface.evaluation.scores import Floats
from sparface.evaluation.settings import RobustnessSettings
from sparface.evaluation.weighted import Pairs

FALSE_ALARMS = 0.05
HIDING = 1.0
"""Weight of the scores in what an adaptive attack lowers, beside the cosine or logit that it is after."""
SCORES = ("shift", "memory")


class Detector(nn.Module):
    """Maps faces [B,3,H,W] in [0,1] to scores [B,S] that are higher for attacked ones.

    `shift`: how far purification moves the output of the network (1 − cosine). `memory`: how far the features
    are from the nearest cell of the purifier's memory (1 − cosine); a rival of purifiers has none.
    """

    def __init__(self, purified: Purified) -> None:
        super().__init__()
        self.purified = purified
        cleaner = purified.cleaner
        self.purifier = cleaner.purifier if isinstance(cleaner, Randomly) else None
        self.names = SCORES if self.purifier is not None else SCORES[:1]

    def forward(self, x: Tensor, draw: int | None = 0) -> Tensor:
        outputs = self.purified(x, draw), self.purified.network(x)
        scores = [1 - F.cosine_similarity(*outputs, dim=1)]
        if self.purifier is not None:
            scores.append(self.purifier.strangeness(x))
        return torch.stack(scores, 1)


def hiding(goal: Goal, detector: Detector, draws: int) -> Goal:
    """The goal of an attacker who also lowers the detector's scores, in the mean over some of its draws, of
    which none is the one that it is judged by."""

    def through(draw: int | None) -> Scores:
        def scores(faces: Tensor, rows: Tensor) -> Tensor:
            found = goal.scores(faces, rows)
            own = goal.labels[rows][:, None]
            return found.scatter_add(1, own, HIDING * detector(faces, draw).sum(1, keepdim=True).to(found))

        return scores

    return dataclasses.replace(goal, scores=expected([through(draw) for draw in seen_draws(draws)]))


def evaluate_detection(
    network: Path,
    purify: str,
    *,
    pairs: Path | None = None,
    photos: Path | None = None,
    shards: Path | None = None,
    settings: RobustnessSettings | None = None,
    generator: Path | None = None,
    json_out: Path | None = None,
) -> dict[str, Any]:
    """Score faces as they are and as they are attacked, and return the document of the results.

    Faces and attacks are those of `evaluate_robustness`; `purify` is what `open_cleaner` opens. With
    `settings.adaptive`, the attacks go through it, and also hide from the scores (see `hiding`). The document
    has `figures`, `intervals` and `bootstrap` (see `results.figures`): `ATTACK/STRENGTH/SCORE/auc`, and
    `…/found`, the share of attacked faces that are found with `FALSE_ALARMS` of the others. Raises
    `UserError` for settings, faces or networks that cannot be used.
    """
    started = time.monotonic()
    settings = settings or RobustnessSettings()
    if not purify:
        raise UserError("--purify: is missing; give what the scores come from")
    trials, given = open_trials(settings, generator), Given(pairs, photos, shards)
    subject = open_subject(network, given, settings, trials, None, purify)
    require_outputs(subject.opened, json_out)
    purified = subject.opened.network
    assert isinstance(purified, Purified)
    detector = Detector(purified).eval().requires_grad_(False)
    clean, attacked = _scores(trials, subject, detector, settings)
    owner, both = subject.owner, np.repeat([False, True], subject.count)
    statistics: dict[str, Statistic] = {}
    for trial, found in zip(trials, attacked, strict=True):
        for column, name in enumerate(detector.names):
            distance = -np.concatenate([clean[:, column], found[:, column]])
            curve = Pairs.of(distance, both, np.tile(owner, 2), np.tile(owner, 2))
            statistics[f"{trial.name}/{name}/auc"] = curve.auc
            statistics[f"{trial.name}/{name}/found"] = curve.tar_at(FALSE_ALARMS)
    measured = figures(estimates(statistics, len(subject.people)), subject.people)
    document = {"kind": "detection", "name": given.name("detection", subject, settings), **measured}
    document["provenance"] = about(subject, settings, started)
    store(document, subject.opened, subject.shard_set, json_out)
    return document


def _scores(
    trials: list[Trial], subject: Subject, detector: Detector, settings: RobustnessSettings
) -> tuple[Floats, list[Floats]]:
    """The scores [N,S] of the faces, and of what each trial makes of them."""
    clean: list[Tensor] = []
    attacked: list[list[Tensor]] = [[] for _ in trials]
    for positions, x, aim, _ in subject.batches(usable_device()):
        goal = hiding(aim, detector, settings.draws) if settings.adaptive else aim
        with torch.no_grad():
            clean.append(detector(x))
        for trial, found in zip(trials, attacked, strict=True):
            faces = trial.attack(goal, x, positions).faces
            with torch.no_grad():
                found.append(detector(faces))
    return _numbers(clean), [_numbers(one) for one in attacked]


def _numbers(parts: list[Tensor]) -> Floats:
    return torch.cat(parts).double().cpu().numpy()


def summary(document: Mapping[str, Any]) -> str:
    """Summarise an evaluation in a table, one line per attack, strength and score."""
    lines = [f"{document['name']}: AUC, and attacked faces found with {FALSE_ALARMS:.0%} false alarms"]
    for name in document["figures"]:
        if name.endswith("/auc"):
            of = name.removesuffix("/auc")
            lines.append(f"{of:<28}{percent(document, name):<22}{percent(document, f'{of}/found')}")
    return "\n".join(lines)
