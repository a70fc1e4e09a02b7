"""Classification of faces: how good a classifier is on a shard set, and its validation during training."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sparface import settings
from sparface.errors import UserError
from sparface.evaluation.confusion import MOST_LISTED, Counts, count, reliability, statistics
from sparface.evaluation.embed import Image, embed
from sparface.evaluation.recognizers import Opened, usable_device
from sparface.evaluation.results import (
    document_name,
    estimates,
    figures,
    percent,
    provenance,
    require_outputs,
    store,
)
from sparface.files import inside
from sparface.forms import fits
from sparface.models.weights import weights_digest
from sparface.progress import track
from sparface.recipes import Role, registry
from sparface.runs.trained import Trained, open_run
from sparface.shards.format import Face
from sparface.shards.labels import IDENTITY
from sparface.shards.set import ShardSet

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_BY_PERSON = ("accuracy", "recall_weighted")
"""Figures that are means over people, also where each person is a class."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier says about the faces of a set, in its order."""

    probabilities: Floats
    """[N,C]"""
    truth: Ints
    """[N]: number of each face's class."""
    owner: Ints
    """[N]: number of each face's person in `people`."""
    people: list[str]
    keys: list[str]

    def counts(self) -> Counts:
        return count(self.probabilities, self.truth, self.owner, len(self.people))


def classify(
    network: nn.Module, shard_set: ShardSet, label: str, classes: Sequence[str], *, progress: bool = False
) -> Predictions:
    """Classify all faces of a set whose `label` is one of the `classes` of the network's outputs.

    Runs on the network's device in evaluation mode, a batch in memory at a time. Raises `UserError` if faces
    lack the label, or if the set has other classes.
    """
    require_known(shard_set, label, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    truth: list[int] = []
    names: list[str] = []
    keys: list[str] = []

    def stream() -> Iterator[tuple[int, Image]]:
        faces: Iterable[Face] = shard_set.faces()
        faces = track(faces, total=len(shard_set), unit="faces") if progress else faces
        for place, face in enumerate(faces):
            truth.append(numbers[class_of(face, label, numbers, shard_set)])
            names.append(face.identity)
            keys.append(face.key)
            yield place, face.image

    logits = np.stack(list(embed(network, stream()).values())).astype(np.float64)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    people = sorted(set(names))
    index = {name: number for number, name in enumerate(people)}
    return Predictions(probabilities, np.array(truth), np.array([index[n] for n in names]), people, keys)


def require_known(shard_set: ShardSet, label: str, classes: Sequence[str]) -> None:
    """Raise `UserError` if faces of a set lack a label, or have one that is not among the `classes`."""
    if unknown := sorted(set(shard_set.classes(label)) - set(classes)):
        raise UserError(
            f"{shard_set.folder}: has the {label} {unknown[0]}, which was not in the training set; it had "
            f"{', '.join(classes)[:200]}"
        )


def class_of(face: Face, label: str, classes: Container[str], shard_set: ShardSet) -> str:
    """The class of a face of a set. Raises `UserError` if it is not one of the `classes`."""
    name = face.identity if label == IDENTITY else face.meta.get(label)
    if not isinstance(name, str) or name not in classes:
        raise UserError(
            f"{shard_set.folder}: face {face.key} has no {label} of the manifest; write the set again"
        )
    return name


class ClassValidator:
    """Classification during training, on all faces of a shard set."""

    role: Role = "classifier"

    def __init__(self, shard_set: ShardSet, label: str, classes: Sequence[str]) -> None:
        """Raises `UserError` if faces of the set lack the label, or have other classes."""
        require_known(shard_set, label, classes)
        self.shard_set, self.label, self.classes = shard_set, label, classes

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return accuracy, macro recall, F1 and calibration error; all NaN if an output is not finite."""
        found = classify(network, self.shard_set, self.label, self.classes)
        everyone = np.ones((1, len(found.people)))
        names = ("accuracy", "recall_macro", "f1_macro", "calibration_error")
        if not np.isfinite(found.probabilities).all():
            return dict.fromkeys(names, float("nan"))
        of_all = statistics(found.counts(), self.classes)
        return {name: float(of_all[name](everyone)[0]) for name in names}


def evaluate_classification(run: Path, shards: Path, *, json_out: Path | None = None) -> dict[str, Any]:
    """Classify the faces of a shard set with the classifier of a run.

    Returns the document of the results: `figures` (accuracy, precision, recall and F1, calibration error),
    `intervals` and `bootstrap` (see `results.figures`), `label`, `classes`, `confusion` [C][C] (true class,
    then predicted), `calibration` and `provenance`. It is also written to `RUN/evaluations/NAME-IMAGES.json`,
    and the figures are added to the run's metrics and MLflow. Raises `UserError` if the run has no classifier
    or has diverged, or if the set lacks labels or has other classes.
    """
    started = time.monotonic()
    opened, classes = open_classifier(run, usable_device())
    assert opened.trained is not None
    label = opened.trained.recipe.label
    require_outputs(opened, json_out)
    shard_set = ShardSet.open(shards)
    opened.require_size(shard_set)
    found = classify(opened.network, shard_set, label, classes, progress=True)
    if not np.isfinite(found.probabilities).all():
        raise UserError(f"{run}: the classifier has diverged: its outputs are not finite; train it again")
    counts = found.counts()
    measured = statistics(counts, classes)
    without = {name for name in measured if not _can_bootstrap(name, label)}
    known = estimates(measured, len(found.people), without_intervals=without)
    document = {
        "kind": "classification",
        "name": document_name("classification", shard_set.manifest.name),
        "label": label,
        "classes": classes,
        "confusion": counts.confusion.tolist(),
        "calibration": reliability(counts),
        **figures(known, found.people),
    }
    document["provenance"] = provenance(opened, shard_set) | {
        "faces": len(found.keys),
        "seconds": round(time.monotonic() - started, 1),
    }
    store(document, opened, shard_set, json_out)
    return document


def _can_bootstrap(figure: str, label: str) -> bool:
    """Whether drawing other people gives the interval of a figure.

    In every bin, drawn faces fluctuate more than all of them: the calibration error would be too high. Where
    people are the classes, nobody is mistaken for one who is not drawn: precision would be too high.
    """
    return figure != "calibration_error" and (label != IDENTITY or figure in _BY_PERSON)


def is_classifier(source: Path) -> bool:
    """Whether something is a run of a classifier, and not a recognizer."""
    if not (source / "config.yaml").is_file():
        return False
    config = settings.load(inside(source, "config.yaml"))
    return "classifier" in registry.find(config.recipe).roles(config)


def open_classifier(run: Path, device: torch.device) -> tuple[Opened, list[str]]:
    """Open the classifier of a run, and return it with the names of its classes. Raises `UserError` if there
    is none, or if the checkpoint does not say what its classes are."""
    trained = open_run(run)
    network = trained.network("classifier", device)
    classes = learned(trained)
    digest = weights_digest(network.state_dict())
    return Opened(run.name, network, digest, trained.config.size, None, None, run, trained), classes


def learned(trained: Trained) -> list[str]:
    """The names of the classes that a run has learned, in the order of its outputs."""
    names: Any = trained.facts.get("classes")
    if not fits(names, [str]) or not len({*names}) == len(names) == trained.identity.get("identities"):
        raise UserError(f"{trained.checkpoint}: does not say what its classes are; train the run again")
    return list(names)


def summary(document: Mapping[str, Any]) -> str:
    """Summarise an evaluation in a few lines of text."""
    found, classes = document["figures"], document["classes"]
    lines = [
        f"{document['name']}: accuracy {percent(document, 'accuracy')}",
        *(
            f"{how:<9}precision {percent(document, f'precision_{how}')}   recall "
            f"{percent(document, f'recall_{how}')}   F1 {percent(document, f'f1_{how}')}"
            for how in ("macro", "weighted")
        ),
        f"calibration error {found['calibration_error']:.1%}",
        f"95 % intervals over {document['bootstrap']['identities']} people; "
        f"{document['provenance']['faces']} faces; checkpoint {document['provenance']['checkpoint']}",
    ]
    if len(classes) > MOST_LISTED:
        return "\n".join(lines)
    width = max(len(name) for name in classes)
    support = [sum(row) for row in document["confusion"]]
    lines.append(f"{'':{width}}  faces  precision  recall  F1")
    for name, faces in zip(classes, support, strict=True):
        cells = [found.get(f"{name}/{figure}") for figure in ("precision", "recall", "f1")]
        one, two, three = ("–" if cell is None else f"{cell:.1%}" for cell in cells)
        lines.append(f"{name:{width}}  {faces:>5}  {one:>9}  {two:>6}  {three}")
    return "\n".join(lines)
