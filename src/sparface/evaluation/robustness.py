"""Evaluate robustness: how many pairs of faces are still judged correctly if one face is attacked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparface.attacks.attack import Attack
from sparface.attacks.goal import Goal, of_templates
from sparface.attacks.suite import build_attack
from sparface.errors import UserError
from sparface.evaluation.bootstrap import Statistic
from sparface.evaluation.embed import Embedding, PairFaces, to_floats
from sparface.evaluation.pairs import Pair, references
from sparface.evaluation.recognizers import Opened, open_recognizer, usable_device
from sparface.evaluation.results import (
    document_name,
    estimates,
    figures,
    percent,
    provenance,
    require_outputs,
    store,
)
from sparface.evaluation.scores import Bools, Floats, Ints
from sparface.evaluation.settings import RobustnessSettings
from sparface.evaluation.verification import about_pairs, embed_pairs, open_pairs, people_of, scored
from sparface.evaluation.weighted import accuracy
from sparface.models.sae import Encoder
from sparface.progress import track
from sparface.runs.trained import open_run

BATCH = 64
"""Pairs attacked at a time."""


@dataclass(frozen=True)
class Trial:
    """An attack with one budget."""

    attack: Attack
    strength: float
    """ε, or the number of pixels."""

    @property
    def name(self) -> str:
        return f"{self.attack.settings.attack}/{self.strength:g}"


@dataclass
class Outcome:
    """What a trial did to N pairs."""

    right: Bools
    """[N]: whether the pair is still judged correctly."""
    queries: Ints
    """[N]"""
    seconds: float = 0.0


def evaluate_robustness(
    recognizer: Path,
    *,
    pairs: Path | None = None,
    photos: Path | None = None,
    shards: Path | None = None,
    settings: RobustnessSettings | None = None,
    generator: Path | None = None,
    surrogate: Path | None = None,
    json_out: Path | None = None,
) -> dict[str, Any]:
    """Attack the first face of every pair, and return the document of the results.

    Pairs and faces are given as to `evaluate_verification`. In a pair of one person, the attack makes the
    faces differ (dodging); in a pair of two, it makes them match (impersonation). A pair is judged by the
    threshold that verification without attacks found on the other folds. The second face is not changed.

    `generator` is the run whose generator makes the changes of the attack `trained`. With `surrogate`, the
    attacks are aimed at that recognizer, and their faces are shown to `recognizer` (transfer).

    The document has `figures` and `intervals` (`ATTACK/STRENGTH/accuracy`, `…/dodging` and
    `…/impersonation`, the shares of pairs that were judged correctly before and no longer are),
    `curves` (a row for each attack and strength) and `provenance`. Raises `UserError` for settings,
    faces or networks that cannot be used.
    """
    started = time.monotonic()
    settings = settings or RobustnessSettings()
    trials = _trials(settings, generator)
    needs_gradient = any(trial.attack.needs_gradient for trial in trials)
    victim = open_recognizer(recognizer, usable_device(), gradients=needs_gradient and not surrogate)
    require_outputs(victim, json_out)
    shard_set, listed = open_pairs(victim, pairs, photos, shards)
    listed = _part(listed, settings.most)
    faces = PairFaces(shard_set, references(listed))
    defended = _Side.of(victim, listed, faces)
    attacked = defended
    if surrogate:
        attacked = _Side.of(
            open_recognizer(surrogate, usable_device(), gradients=needs_gradient), listed, faces
        )
    outcomes = _attacked(trials, attacked, defended, listed, faces)
    name = document_name("robustness", pairs.stem if pairs else "", shard_set.manifest.name if shards else "")
    document = {"kind": "robustness", "name": name, **_measured(trials, outcomes, defended, listed, faces)}
    document["provenance"] = provenance(victim, shard_set) | about_pairs(pairs, photos, faces, started)
    document["provenance"] |= {"settings": vars(settings), "attacked": attacked.opened.digest}
    store(document, victim, shard_set, json_out)
    return document


def _trials(settings: RobustnessSettings, generator: Path | None) -> list[Trial]:
    """All attacks with all budgets. Raises `UserError` for a setting that is not allowed."""
    made: Encoder | None = None
    names = settings.names()
    if (generator is not None) != ("trained" in names):
        raise UserError("--generator: goes with the attack `trained`; give both or neither")
    if generator is not None:
        network = open_run(generator).network("generator", usable_device())
        if not isinstance(network, Encoder):
            raise UserError(f"{generator}: its generator makes no sparring faces; use another run")
        made = network
    return [Trial(build_attack(config, made), strength) for config, strength in settings.configs()]


def _part(pairs: list[Pair], most: int) -> list[Pair]:
    """At most `most` pairs (0: all), spread over the list."""
    if not most or most >= len(pairs):
        return pairs
    return [pairs[i * len(pairs) // most] for i in range(most)]


@dataclass(frozen=True)
class _Side:
    """A recognizer with its embeddings and thresholds."""

    opened: Opened
    embeddings: dict[str, Embedding]
    thresholds: Floats
    """[N]: the cosine above which the faces of each pair match."""

    @classmethod
    def of(cls, opened: Opened, pairs: Sequence[Pair], faces: PairFaces) -> _Side:
        opened.network.requires_grad_(False)
        embeddings = embed_pairs(opened, faces)
        found = scored(pairs, embeddings, opened)
        folds = np.array([pair.fold for pair in pairs])
        distances = found.fold_thresholds[np.searchsorted(np.unique(folds), folds)]
        return cls(opened, embeddings, 1 - distances**2 / 2)

    def goal(self, pairs: Sequence[Pair], places: range, device: torch.device) -> Goal:
        """To have some of the pairs judged wrongly; their second faces are the templates."""
        some = pairs[places.start : places.stop]
        templates = torch.from_numpy(np.stack([self.embeddings[pair.second] for pair in some]))[:, None]
        thresholds = torch.from_numpy(self.thresholds[places.start : places.stop]).float()
        labels = torch.tensor([0 if pair.same else 1 for pair in some])
        scores = of_templates(self.opened.network, templates.to(device), thresholds.to(device))
        return Goal(scores, labels.to(device))


def _attacked(
    trials: Sequence[Trial], attacked: _Side, defended: _Side, pairs: Sequence[Pair], faces: PairFaces
) -> list[Outcome]:
    """The outcome of each trial, and at the end that of no attack, with one batch of pairs in memory."""
    device, count = usable_device(), len(pairs)
    outcomes = [Outcome(np.zeros(count, bool), np.zeros(count, np.int64)) for _ in [*trials, None]]
    batches = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    for places in track(batches, total=len(batches), unit="batches"):
        x = to_floats(list(_images(pairs[places.start : places.stop], faces)), device)
        positions = torch.arange(places.start, places.stop, device=device)
        aim, judge = attacked.goal(pairs, places, device), defended.goal(pairs, places, device)
        rows, at = positions - places.start, slice(places.start, places.stop)
        for trial, outcome in zip(trials, outcomes, strict=False):
            begun = time.monotonic()
            found = trial.attack(aim, x, positions)
            outcome.right[at] = (judge.judge(found.faces, rows) >= 0).cpu().numpy()
            outcome.queries[at] = found.queries.cpu().numpy()
            outcome.seconds += time.monotonic() - begun
        outcomes[-1].right[at] = (judge.judge(x, rows) >= 0).cpu().numpy()
    return outcomes


def _images(pairs: Sequence[Pair], faces: PairFaces) -> Iterator[Any]:
    """The first face of each pair."""
    places = [faces.places[pair.first] for pair in pairs]
    found = {place: face.image for place, face in faces.shard_set.faces_at(places)}
    return (found[place] for place in places)


def _measured(
    trials: Sequence[Trial], outcomes: Sequence[Outcome], side: _Side, pairs: Sequence[Pair], faces: PairFaces
) -> dict[str, Any]:
    """`figures`, `intervals`, `bootstrap` and `curves` of the document."""
    people, first, second = people_of(pairs, faces)
    folds, same = np.array([pair.fold for pair in pairs]), np.array([pair.same for pair in pairs])
    before = outcomes[-1].right

    def share(values: Bools, of: Bools) -> Statistic:
        return accuracy(values[of], np.zeros(int(of.sum()), np.int64), first[of], second[of])

    statistics: dict[str, Statistic] = {"accuracy": accuracy(before, folds, first, second)}
    for trial, outcome in zip(trials, outcomes, strict=False):
        statistics[f"{trial.name}/accuracy"] = accuracy(outcome.right, folds, first, second)
        for kind, of in (("dodging", same & before), ("impersonation", ~same & before)):
            if of.any():
                statistics[f"{trial.name}/{kind}"] = share(~outcome.right, of)
    found = figures(estimates(statistics, len(people)), people)
    return {
        **found,
        "curves": [_row(trial, one, found) for trial, one in zip(trials, outcomes, strict=False)],
    }


def _row(trial: Trial, outcome: Outcome, found: Mapping[str, Any]) -> dict[str, Any]:
    """One point of a curve."""
    values = {
        kind: found["figures"].get(f"{trial.name}/{kind}")
        for kind in ("accuracy", "dodging", "impersonation")
    }
    return {
        "attack": trial.attack.settings.attack,
        "strength": trial.strength,
        "settings": trial.attack.settings.used(),
        **values,
        "interval": found["intervals"][f"{trial.name}/accuracy"],
        "queries": round(float(outcome.queries.mean()), 1),
        "seconds": round(outcome.seconds, 1),
    }


def summary(document: Mapping[str, Any]) -> str:
    """Summarise an evaluation in a table, one line per attack and strength."""
    lines = [
        f"{document['name']}: accuracy without attack {percent(document, 'accuracy')}",
        f"{'attack':<10}{'ε or pixels':>12}  {'accuracy':<22}{'dodging':>9}{'impersonation':>15}"
        f"{'queries':>10}",
    ]
    for row in document["curves"]:
        name = f"{row['attack']}/{row['strength']:g}/accuracy"
        shares = [" –" if row[kind] is None else f"{row[kind]:.1%}" for kind in ("dodging", "impersonation")]
        cells = f"{percent(document, name):<22}{shares[0]:>9}{shares[1]:>15}{row['queries']:>10g}"
        lines.append(f"{row['attack']:<10}{row['strength']:>12g}  {cells}")
    return "\n".join(lines)
