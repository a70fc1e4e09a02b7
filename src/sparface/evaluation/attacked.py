"""What `sparface evaluate robustness` attacks: the first face of each pair of a verification."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparface.attacks.goal import Goal, of_templates
from sparface.attacks.suite import build_attack
from sparface.errors import UserError
from sparface.evaluation.bootstrap import Statistic
from sparface.evaluation.embed import Embedding, PairFaces, to_floats
from sparface.evaluation.pairs import Pair, references
from sparface.evaluation.recognizers import Opened, open_recognizer, usable_device
from sparface.evaluation.results import document_name, provenance, require_outputs, store
from sparface.evaluation.robustness import Subject, Trial, measure
from sparface.evaluation.scores import Bools, Floats
from sparface.evaluation.settings import RobustnessSettings
from sparface.evaluation.verification import about_pairs, embed_pairs, open_pairs, people_of, scored
from sparface.evaluation.weighted import accuracy
from sparface.runs.trained import open_generator, open_run


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

    The document has what `measure` returns, and `provenance`. Raises `UserError` for settings, faces or
    networks that cannot be used.
    """
    started = time.monotonic()
    settings = settings or RobustnessSettings()
    trials = open_trials(settings, generator)
    gradients = any(trial.attack.needs_gradient for trial in trials)
    victim = open_recognizer(recognizer, usable_device(), gradients=gradients and not surrogate)
    require_outputs(victim, json_out)
    shard_set, listed = open_pairs(victim, pairs, photos, shards)
    listed = spread(listed, settings.most)
    faces = PairFaces(shard_set, references(listed))
    judged = aimed = Side.of(victim, listed, faces)
    if surrogate:
        known = open_recognizer(surrogate, usable_device(), gradients=gradients)
        aimed = Side.of(known, listed, faces)
    found = measure(trials, AttackedPairs(listed, faces, aimed, judged), usable_device())
    name = document_name("robustness", pairs.stem if pairs else "", shard_set.manifest.name if shards else "")
    document = {"kind": "robustness", "name": name, **found}
    document["provenance"] = provenance(victim, shard_set) | about_pairs(pairs, photos, faces, started)
    document["provenance"] |= {"settings": vars(settings), "attacked": aimed.opened.digest}
    store(document, victim, shard_set, json_out)
    return document


def open_trials(settings: RobustnessSettings, generator: Path | None) -> list[Trial]:
    """All attacks with all budgets. Raises `UserError` for a setting that is not allowed."""
    configs = settings.configs()
    if (generator is not None) != ("trained" in settings.names()):
        raise UserError("--generator: goes with the attack `trained`; give both or neither")
    made = None if generator is None else open_generator(open_run(generator), usable_device())
    return [Trial(build_attack(config, made), strength) for config, strength in configs]


def spread(pairs: list[Pair], most: int) -> list[Pair]:
    """At most `most` pairs (0: all), spread over the list."""
    if not most or most >= len(pairs):
        return pairs
    return [pairs[i * len(pairs) // most] for i in range(most)]


@dataclass(frozen=True)
class Side:
    """A recognizer with its embeddings and thresholds."""

    opened: Opened
    embeddings: dict[str, Embedding]
    thresholds: Floats
    """[N]: the cosine above which the faces of each pair match."""

    @classmethod
    def of(cls, opened: Opened, pairs: Sequence[Pair], faces: PairFaces) -> Side:
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


class AttackedPairs(Subject):
    """Pairs of faces, of which the first is attacked."""

    def __init__(self, pairs: Sequence[Pair], faces: PairFaces, aimed: Side, judged: Side) -> None:
        self.pairs, self.faces, self.aimed, self.judged = pairs, faces, aimed, judged
        self.people, self._first, self._second = people_of(pairs, faces)
        self.count = len(pairs)
        self._folds = np.array([pair.fold for pair in pairs])
        self._same = np.array([pair.same for pair in pairs])

    def batch(self, places: range, device: torch.device) -> tuple[Tensor, Goal, Goal]:
        at = [self.faces.places[pair.first] for pair in self.pairs[places.start : places.stop]]
        images = {place: face.image for place, face in self.faces.shard_set.faces_at(at)}
        x = to_floats([images[place] for place in at], device)
        aim, judge = (side.goal(self.pairs, places, device) for side in (self.aimed, self.judged))
        return x, aim, judge

    def statistics(self, right: Bools, before: Bools) -> dict[str, Statistic]:
        found = {"accuracy": accuracy(right, self._folds, self._first, self._second)}
        for kind, of in (("dodging", self._same & before), ("impersonation", ~self._same & before)):
            if of.any():
                together = np.zeros(int(of.sum()), np.int64)
                found[kind] = accuracy(~right[of], together, self._first[of], self._second[of])
        return found
