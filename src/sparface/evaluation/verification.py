"""Verification of a recognizer: on LFW's pairs, on pairs from a shard set, and during training."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import nn

from sparface.errors import UserError
from sparface.evaluation.embed import (
    Embedding,
    PairFaces,
    as_validated,
    require_all,
    require_finite,
    unique,
    without_suffix,
)
from sparface.evaluation.pairs import Pair, draw_pairs, read_pairs, references
from sparface.evaluation.recognizers import Opened, open_recognizer, usable_device
from sparface.evaluation.results import (
    document_name,
    estimates,
    figures,
    interval,
    provenance,
    require_outputs,
    store,
)
from sparface.evaluation.scores import (
    FAR,
    Bools,
    Floats,
    Ints,
    Metric,
    Verification,
    distances,
    verify_pairs,
)
from sparface.evaluation.weighted import Pairs, accuracy
from sparface.faces.aligner import Alignment
from sparface.faces.batches import aligned
from sparface.faces.photos import Photo, fingerprint, keys, list_photos
from sparface.files import locked, sha256
from sparface.machine import usable_cores
from sparface.progress import track
from sparface.recipes import Role
from sparface.shards.format import Face
from sparface.shards.manifest import MANIFEST
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter

METRICS: tuple[Metric, ...] = ("euclidean", "cosine")
DRAWN_PAIRS = 2_000
"""Number of pairs drawn from a shard set for an evaluation without a pairs file."""
DRAWN_SEED = 0
DEFAULT_SIZE = 112
"""Side of aligned faces for a recognizer that takes any size."""


class Validator:
    """Verification during training, on pairs of a shard set that are the same in every run."""

    role: Role = "recognizer"

    def __init__(self, shard_set: ShardSet, pairs: int, mirror: bool = False) -> None:
        """Raises `UserError` if no pairs can be drawn from the set. `mirror`: see `Mirrored`."""
        self.shard_set, self.mirror = shard_set, mirror
        self.pairs = draw_pairs(shard_set, pairs, DRAWN_SEED)
        self.faces = PairFaces(shard_set, references(self.pairs))

    def __call__(self, recognizer: nn.Module) -> dict[str, float]:
        """Return figures for the Euclidean distance: accuracy, standard_error, auc, eer, ….

        Decodes the faces at every call, a batch at a time. All figures are NaN if an embedding is not finite:
        an accuracy and AUC of 0.5 would hide that the recognizer has diverged.
        """
        embeddings = self.faces.embed(as_validated(recognizer, self.mirror))
        try:
            return score(self.pairs, embeddings).figures()
        except ValueError:
            return dict.fromkeys(
                ("accuracy", "standard_error", "auc", "eer", "tar_at_far_0.001"), float("nan")
            )


def score(
    pairs: Sequence[Pair], embeddings: dict[str, Embedding], metric: Metric = "euclidean"
) -> Verification:
    """Evaluate pairs from the embeddings of their faces. Raises ValueError like `verify_pairs`."""
    return verify_pairs(*compared(pairs, embeddings, metric))


def compared(
    pairs: Sequence[Pair], embeddings: dict[str, Embedding], metric: Metric = "euclidean"
) -> tuple[Floats, Bools, Ints]:
    """Distance, ground truth and fold of each pair [N]."""
    first = np.stack([embeddings[pair.first] for pair in pairs])
    second = np.stack([embeddings[pair.second] for pair in pairs])
    same = np.array([pair.same for pair in pairs])
    folds = np.array([pair.fold for pair in pairs], np.int64)
    return distances(first, second, metric), same, folds


def evaluate_verification(
    recognizer: Path,
    *,
    pairs: Path | None = None,
    photos: Path | None = None,
    shards: Path | None = None,
    purify: str = "",
    json_out: Path | None = None,
) -> dict[str, Any]:
    """Verify pairs of faces with a recognizer (whatever `open_recognizer` opens).

    - `pairs` and `photos`: aligns the photos in the pairs as the training faces were. A photo without a face
      is cropped at its centre and counted. The faces are cached as a shard set (see `cache_folder`).
    - `pairs` and `shards`: finds the faces by their source.
    - `shards` alone: draws pairs, always the same ones.

    `purify` names what cleans all faces first (see `open_cleaner`).

    Returns the document of the results: `figures` (Euclidean distance), `intervals` and `bootstrap` (see
    `results.figures`), `cosine`, `folds`, `roc`, `pairs` and `provenance`. For a run, it is also written to
    `RUN/evaluations/NAME-IMAGES.json`, and the figures are added to the run's metrics and MLflow. Raises
    `UserError` if the recognizer cannot be opened or has diverged, or faces are missing.
    """
    started = time.monotonic()
    opened = open_recognizer(recognizer, usable_device()).purified(purify)
    require_outputs(opened, json_out)
    shard_set, listed = open_pairs(opened, pairs, photos, shards)
    faces = PairFaces(shard_set, references(listed))
    embeddings = embed_pairs(opened, faces)
    scores = {metric: scored(listed, embeddings, opened, metric) for metric in METRICS}
    name = document_name(
        pairs.stem if pairs else "", shard_set.manifest.name if shards else "", cleaner=opened.cleaner
    )
    document = _document(name, scores) | _estimates(listed, embeddings, scores["euclidean"], faces)
    document["provenance"] = provenance(opened, shard_set) | about_pairs(pairs, photos, faces)
    document["provenance"]["seconds"] = round(time.monotonic() - started, 1)
    store(document, opened, shard_set, json_out)
    return document


def open_pairs(
    opened: Opened, pairs: Path | None, photos: Path | None, shards: Path | None
) -> tuple[ShardSet, list[Pair]]:
    """The faces and the pairs that the arguments of `evaluate_verification` name."""
    if (photos is None) == (shards is None):
        raise UserError("evaluate: give either --photos or --shards")
    if photos is not None and pairs is None:
        raise UserError("evaluate: --photos needs --pairs; give a pairs file that says what to compare")
    listed = read_pairs(pairs) if pairs else None
    if photos is not None and listed is not None:
        shard_set = align_pairs(photos, references(listed), opened)
    else:
        shard_set = ShardSet.open(Path(str(shards)))
    opened.require_size(shard_set)
    return shard_set, listed or draw_pairs(shard_set, DRAWN_PAIRS, DRAWN_SEED)


def embed_pairs(opened: Opened, faces: PairFaces) -> dict[str, Embedding]:
    """Embed the faces of pairs by reference. Raises `UserError` if an embedding is not finite."""
    embeddings = faces.embed(opened.network, track(faces, total=len(faces), unit="faces"))
    require_finite({faces.key(reference): row for reference, row in embeddings.items()})
    return embeddings


def about_pairs(pairs: Path | None, photos: Path | None, faces: PairFaces) -> dict[str, Any]:
    """What the provenance says of pairs whose faces have been embedded."""
    return {
        "pairs": pairs.name if pairs else f"{DRAWN_PAIRS} drawn, seed {DRAWN_SEED}",
        "pairs_digest": sha256(pairs) if pairs else None,
        "photos": str(photos) if photos else None,
        "faces": len(faces),
        "centred": faces.methods["center"],
    }


def summary(document: dict[str, Any]) -> str:
    """Summarise an evaluation in a few lines of text."""
    figures, pairs, provenance = document["figures"], document["pairs"], document["provenance"]
    low = " (no false accept: fewer than 1,000 different pairs)" if pairs["different"] < 1000 else ""
    lines = [
        f"{document['name']}: accuracy {figures['accuracy']:.2%} ± {figures['standard_error']:.2%}"
        f" (mean of {pairs['folds']} folds ± standard error)",
        f"AUC {figures['auc']:.4f}   EER {figures['eer']:.2%}"
        f"   TAR at FAR 0.001 {figures['tar_at_far_0.001']:.2%}{low}",
        f"95 % intervals over {document['bootstrap']['identities']} people: accuracy"
        f" {interval(document, 'accuracy')}, TAR {interval(document, 'tar_at_far_0.001')}",
        f"{pairs['same']} same and {pairs['different']} different pairs of {provenance['faces']} faces;"
        f" checkpoint {provenance['checkpoint']}",
    ]
    if "assumed" in provenance["template"]:
        lines.append(f"template {provenance['template']}")
    if provenance["centred"]:
        lines.append(f"{provenance['centred']} photos without a detected face were cropped at the centre")
    return "\n".join(lines)


# Aligned photos and their cache.


def cache_folder() -> Path:
    """Folder of aligned test faces: `$XDG_CACHE_HOME/sparface/aligned`, by default in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sparface" / "aligned"


def align_pairs(photos: Path, wanted: Collection[str], opened: Opened) -> ShardSet:
    """Align the wanted photos as the training faces were; returns a shard set, from the cache if possible.

    A photo is wanted by its source without suffix, or its file name without suffix. The cache key is a digest
    of the photos' names and sizes and of the alignment.
    """
    found = unique(_named(list_photos(photos)), set(wanted), str(photos))
    require_all(wanted, found, f"{photos}", "photos", "use the folder that the pairs were made for")
    chosen = sorted(found.values(), key=lambda photo: (photo.identity, photo.source))
    alignment = Alignment(opened.size or DEFAULT_SIZE, opened.template or "arcface", on_no_face="center")
    key = hashlib.sha256(f"{fingerprint(chosen)} {alignment}".encode()).hexdigest()[:16]
    folder = cache_folder() / key
    manifest = folder / MANIFEST
    if not manifest.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with locked(manifest.with_suffix(".lock")):  # evaluations at once: one aligns, the others wait
            if not manifest.is_file():
                _align(chosen, folder, alignment, photos)
    return ShardSet.open(folder)


def _named(photos: Iterable[Photo]) -> Iterator[tuple[str, Photo]]:
    """The names by which pairs may refer to photos."""
    for photo in photos:
        name = without_suffix(photo.source)
        yield name, photo
        yield PurePosixPath(name).name, photo


def _align(chosen: list[Photo], folder: Path, alignment: Alignment, photos: Path) -> None:
    provenance = {"maker": "sparface evaluate", "photos": photos.name, "alignment": str(alignment)}
    size = (alignment.size, alignment.size)
    with ShardSetWriter(folder, name="pairs", size=size, provenance=provenance) as writer:
        done = writer.resumed or 0
        results = aligned(chosen, alignment, workers_for(len(chosen) - done), done)
        work = track(
            zip(chosen[done:], keys(chosen)[done:], results, strict=True),
            total=len(chosen),
            done=done,
            unit="photos",
        )
        for number, (photo, key, result) in enumerate(work, done + 1):
            if isinstance(result, str):
                raise UserError(f"{photo.path}: {result}; replace the photo, as the pairs need it")
            writer.add(Face(key, result[0], photo.identity, photo.source, result[1]), number)


def workers_for(photos: int) -> int:
    """Number of processes for aligning; starting one takes about as long as aligning fifty photos."""
    return max(1, min(photos // 100, usable_cores(), 8))


# The evaluation document.


def scored(
    pairs: Sequence[Pair], embeddings: dict[str, Embedding], opened: Opened, metric: Metric = "euclidean"
) -> Verification:
    """`score`, but raises `UserError`."""
    try:
        return score(pairs, embeddings, metric)
    except ValueError as error:
        raise UserError(f"{opened.name}: cannot be evaluated: {error}") from None


def _document(name: str, scores: dict[Metric, Verification]) -> dict[str, Any]:
    main = scores["euclidean"]
    curve = main.roc.corners()
    return {
        "kind": "verification",
        "name": name,
        "figures": main.figures(),
        "cosine": scores["cosine"].figures(),
        "folds": {"accuracy": main.fold_accuracies.tolist(), "threshold": main.fold_thresholds.tolist()},
        "pairs": {"same": main.same, "different": main.different, "folds": len(main.fold_accuracies)},
        "roc": {"far": curve.far.tolist(), "tar": curve.tar.tolist(), "threshold": curve.thresholds.tolist()},
    }


def _estimates(
    pairs: Sequence[Pair], embeddings: dict[str, Embedding], main: Verification, faces: PairFaces
) -> dict[str, Any]:
    """`intervals` and `bootstrap` of the document."""
    people, first, second = people_of(pairs, faces)
    distance, same, folds = compared(pairs, embeddings)
    of_pairs = Pairs.of(distance, same, first, second)
    thresholds = main.fold_thresholds[np.searchsorted(np.unique(folds), folds)]
    right = (distance <= thresholds) == same
    statistics = {
        "accuracy": accuracy(right, folds, first, second),
        "auc": of_pairs.auc,
        "eer": of_pairs.eer,
        f"tar_at_far_{FAR}": of_pairs.tar_at(FAR),
    }
    found = figures(estimates(statistics, len(people)), people)
    return {"intervals": found["intervals"], "bootstrap": found["bootstrap"]}


def people_of(pairs: Sequence[Pair], faces: PairFaces) -> tuple[list[str], Ints, Ints]:
    """The people in pairs whose faces have been embedded, and the two indices [N] of each pair's."""
    names = [[faces.identity(reference) for reference in (pair.first, pair.second)] for pair in pairs]
    people = sorted({name for both in names for name in both})
    index = {name: number for number, name in enumerate(people)}
    first, second = np.array([[index[name] for name in both] for both in names], np.int64).T
    return people, first, second
