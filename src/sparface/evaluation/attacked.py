"""Evaluate robustness: open what is attacked, attack it, and store the results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparface.attacks.suite import build_attack
from sparface.errors import UserError
from sparface.evaluation.classification import is_classifier, open_classifier
from sparface.evaluation.embed import PairFaces
from sparface.evaluation.pairs import references
from sparface.evaluation.recognizers import open_recognizer, usable_device
from sparface.evaluation.results import document_name, provenance, require_outputs, store
from sparface.evaluation.robustness import Trial, measure
from sparface.evaluation.settings import RobustnessSettings
from sparface.evaluation.subjects import (
    Attackable,
    AttackedClasses,
    AttackedPairs,
    AttackedProbes,
    spread_pairs,
)
from sparface.evaluation.verification import about_pairs, open_pairs
from sparface.runs.trained import open_generator, open_run
from sparface.shards.set import ShardSet


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
    as to `evaluate_verification`. In a pair of one person, the attack makes the faces differ (dodging); in a
    pair of two, it makes them match (impersonation). A pair is judged by the threshold that verification
    without attacks found on the other folds. The second face is not changed. With `settings.gallery`, a
    recognizer names the faces of `shards` that are not enrolled, and the attack has them named otherwise.

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
        kind += "" if settings.adaptive else "-unaware"
        kind += f"-gallery-{settings.gallery}" if settings.gallery else ""
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
    if settings.gallery:
        if given.pairs or given.photos or given.shards is None:
            raise UserError("--gallery: goes with --shards alone, whose faces are enrolled or attacked")
        judged.require_size(shard_set := ShardSet.open(given.shards))
        return AttackedProbes(shard_set, settings, aimed, judged)
    shard_set, listed = open_pairs(judged, *given)
    listed = spread_pairs(listed, settings.most)
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
