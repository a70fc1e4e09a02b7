"""What `sparface evaluate robustness` attacks: the first face of each pair, or faces with classes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sparface.attacks.goal import Goal, Network, expected, of_classifier, of_templates
from sparface.attacks.suite import build_attack
from sparface.errors import UserError
from sparface.evaluation.bootstrap import Statistic
from sparface.evaluation.classification import class_of, is_classifier, open_classifier, require_known
from sparface.evaluation.embed import Embedding, PairFaces, to_floats
from sparface.evaluation.pairs import Pair, references
from sparface.evaluation.purifiers import draws_of
from sparface.evaluation.recognizers import Opened, open_recognizer, usable_device
from sparface.evaluation.results import document_name, provenance, require_outputs, store
from sparface.evaluation.robustness import Subject, Trial, measure
from sparface.evaluation.scores import Bools, Floats
from sparface.evaluation.settings import RobustnessSettings
from sparface.evaluation.verification import about_pairs, embed_pairs, open_pairs, people_of, scored
from sparface.evaluation.weighted import accuracy, mean
from sparface.runs.trained import open_generator, open_run
from sparface.shards.set import ShardSet

T = TypeVar("T")


def evaluate_robustness(
    network: Path,
    *,
    pairs: Path | None = None,
    photos: Path | None = None,
    shards: Path | None = None,
    settings: RobustnessSettings | None = None,
    generator: Path | None = None,
    surrogate: Path | None = None,
    purify: str = "",
    json_out: Path | None = None,
) -> dict[str, Any]:
    """Attack the faces that a network answers for, and return the document of the results.

    `network` is the run of a classifier, whose answers are the classes of the faces in `shards`, or any
    recognizer, whose answers are about pairs: the first face of each is attacked. Pairs and faces are given
    as to `evaluate_verification`. In a pair of one person, the attack makes the
    faces differ (dodging); in a pair of two, it makes them match (impersonation). A pair is judged by the
    threshold that verification without attacks found on the other folds. The second face is not changed.

    `generator` is the run whose generator makes the changes of the attack `trained`. With `surrogate`, the
    attacks are aimed at that network, and their faces are shown to `network` (transfer). `purify` names what
    cleans all faces before `network` sees them (see `open_cleaner`); with `settings.adaptive`, the attacks
    are aimed through it, at the mean score of several draws of a random one.

    The document has what `measure` returns, and `provenance`. Raises `UserError` for settings, faces or
    networks that cannot be used.
    """
    started = time.monotonic()
    settings = settings or RobustnessSettings()
    trials = open_trials(settings, generator)
    given = Given(pairs, photos, shards)
    subject = open_subject(network, given, settings, trials, surrogate, purify)
    require_outputs(subject.opened, json_out)
    found = measure(trials, subject, usable_device())
    document = {"kind": "robustness", "name": given.name("robustness", subject, settings), **found}
    document["provenance"] = about(subject, settings, started)
    store(document, subject.opened, subject.shard_set, json_out)
    return document


class Given(NamedTuple):
    """The faces of an evaluation, as given to `evaluate_verification`."""

    pairs: Path | None
    photos: Path | None
    shards: Path | None

    def name(self, kind: str, subject: Attackable, settings: RobustnessSettings) -> str:
        """The name of the document of an evaluation."""
        on = (self.pairs.stem if self.pairs else "", subject.shard_set.manifest.name if self.shards else "")
        kind = kind if settings.adaptive else f"{kind}-unaware"
        return document_name(kind, *on, cleaner=subject.opened.cleaner)


def open_subject(
    network: Path,
    given: Given,
    settings: RobustnessSettings,
    trials: Sequence[Trial],
    surrogate: Path | None,
    purify: str,
) -> Attackable:
    """Open what is attacked (see `evaluate_robustness`). Raises `UserError`."""
    if is_classifier(network):
        if given.pairs or given.photos or given.shards is None:
            raise UserError("evaluate: give --shards, a set with the classes that the classifier has learned")
        return _classes(network, given.shards, settings, surrogate, purify)
    gradients = any(trial.attack.needs_gradient for trial in trials)
    victim = open_recognizer(network, usable_device(), gradients=gradients and not surrogate)
    judged = victim.purified(purify)
    aimed = judged if settings.adaptive else victim
    if surrogate:
        known = open_recognizer(surrogate, usable_device(), gradients=gradients)
        aimed = known.purified(purify) if settings.adaptive else known
    shard_set, listed = open_pairs(judged, *given)
    listed = spread(listed, settings.most)
    faces = PairFaces(shard_set, references(listed))
    subject = AttackedPairs(listed, faces, aimed, judged, settings.draws)
    subject.about = about_pairs(given.pairs, given.photos, faces)
    return subject


def _classes(
    run: Path, shards: Path, settings: RobustnessSettings, surrogate: Path | None, purify: str
) -> AttackedClasses:
    victim, classes = open_classifier(run, usable_device())
    shard_set, known, judged = ShardSet.open(shards), victim, victim.purified(purify)
    judged.require_size(shard_set)
    if surrogate:
        known, others = open_classifier(surrogate, usable_device())
        if others != classes:
            raise UserError(f"--surrogate: {surrogate} has learned other classes; use another run")
    aimed = known.purified(purify) if settings.adaptive else known
    return AttackedClasses(shard_set, classes, settings.most, aimed, judged, settings.draws)


def about(subject: Attackable, settings: RobustnessSettings, started: float) -> dict[str, Any]:
    """The provenance of an evaluation that started at a time of `time.monotonic`."""
    return {
        **provenance(subject.opened, subject.shard_set),
        **subject.about,
        "attacked": subject.attacked,
        "settings": vars(settings),
        "seconds": round(time.monotonic() - started, 1),
    }


def open_trials(settings: RobustnessSettings, generator: Path | None) -> list[Trial]:
    """All attacks with all budgets. Raises `UserError` for a setting that is not allowed."""
    configs = settings.configs()
    if (generator is not None) != ("trained" in settings.names()):
        raise UserError("--generator: goes with the attack `trained`; give both or neither")
    made = None if generator is None else open_generator(open_run(generator), usable_device())
    return [Trial(build_attack(config, made), strength) for config, strength in configs]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items (0: all), spread over the sequence."""
    count = min(most or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]


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

    def goal(
        self, pairs: Sequence[Pair], places: range, device: torch.device, networks: Sequence[Network]
    ) -> Goal:
        """To have some of the pairs judged wrongly by the mean of networks; their second faces are the
        templates."""
        some = pairs[places.start : places.stop]
        templates = torch.from_numpy(np.stack([self.embeddings[pair.second] for pair in some]))[:, None]
        thresholds = torch.from_numpy(self.thresholds[places.start : places.stop]).float()
        labels = torch.tensor([0 if pair.same else 1 for pair in some])
        given = templates.to(device), thresholds.to(device)
        return Goal(expected([of_templates(network, *given) for network in networks]), labels.to(device))


class Attackable(Subject):
    """A subject with what provenance says of it."""

    attacked: str
    """Digest of the network that attacks aim at."""
    about: dict[str, Any]


class AttackedPairs(Attackable):
    """Pairs of faces, of which the first is attacked."""

    def __init__(
        self, pairs: Sequence[Pair], faces: PairFaces, aimed: Opened, judged: Opened, draws: int
    ) -> None:
        """`draws`: of a random purifier before the network that the attacks aim at."""
        self.pairs, self.faces = pairs, faces
        self.judged = Side.of(judged, pairs, faces)
        self.aimed = self.judged if aimed is judged else Side.of(aimed, pairs, faces)
        self.networks = draws_of(aimed.network, draws)
        self.opened, self.shard_set, self.attacked = judged, faces.shard_set, aimed.digest
        self.people, self._first, self._second = people_of(pairs, faces)
        self.count, self.owner = len(pairs), self._first
        self._folds = np.array([pair.fold for pair in pairs])
        self._same = np.array([pair.same for pair in pairs])

    def batch(self, places: range, device: torch.device) -> tuple[Tensor, Goal, Goal]:
        at = [self.faces.places[pair.first] for pair in self.pairs[places.start : places.stop]]
        images = {place: face.image for place, face in self.faces.shard_set.faces_at(at)}
        x = to_floats([images[place] for place in at], device)
        aim = self.aimed.goal(self.pairs, places, device, self.networks)
        return x, aim, self.judged.goal(self.pairs, places, device, [self.opened.network])

    def statistics(self, right: Bools, before: Bools) -> dict[str, Statistic]:
        found = {"accuracy": accuracy(right, self._folds, self._first, self._second)}
        for kind, of in (("dodging", self._same & before), ("impersonation", ~self._same & before)):
            if of.any():
                together = np.zeros(int(of.sum()), np.int64)
                found[kind] = accuracy(~right[of], together, self._first[of], self._second[of])
        return found


class AttackedClasses(Attackable):
    """Faces of a set with the classes that a classifier has learned."""

    def __init__(
        self,
        shard_set: ShardSet,
        classes: Sequence[str],
        most: int,
        aimed: Opened,
        judged: Opened,
        draws: int,
    ) -> None:
        """At most `most` faces (0: all), spread over the set. Raises `UserError` if the set lacks labels or
        has other classes."""
        assert judged.trained is not None
        self.column, self.classes = judged.trained.recipe.label, list(classes)
        require_known(shard_set, self.column, classes)
        self.opened, self.shard_set, self.attacked = judged, shard_set, aimed.digest
        self.networks = draws_of(aimed.network, draws)
        self.places = spread(range(len(shard_set)), most)
        self.people, self.count = shard_set.identities, len(self.places)
        self.about = {"faces": self.count}
        runs = np.concatenate([shard.runs for shard in shard_set.manifest.shards])
        self.owner = np.repeat(runs[:, 0], runs[:, 1]).astype(np.int64)[self.places]

    def batch(self, places: range, device: torch.device) -> tuple[Tensor, Goal, Goal]:
        found = [face for _, face in self.shard_set.faces_at(self.places[places.start : places.stop])]
        x = to_floats([face.image for face in found], device)
        names = [class_of(face, self.column, self.classes, self.shard_set) for face in found]
        labels = torch.tensor([self.classes.index(name) for name in names], device=device)
        aim = expected([of_classifier(network) for network in self.networks])
        return x, Goal(aim, labels), Goal(of_classifier(self.opened.network), labels)

    def statistics(self, right: Bools, before: Bools) -> dict[str, Statistic]:
        found = {"accuracy": mean(right, self.owner, len(self.people))}
        if before.any():
            found["success"] = mean(~right[before], self.owner[before], len(self.people))
        return found
