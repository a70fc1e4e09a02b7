"""Verification of a recognizer: on LFW's pairs, on pairs from a shard set, and during training."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sparface
from sparface.errors import UserError
from sparface.evaluation.embed import (
    Embedding,
    PairFaces,
    require_all,
    unique,
    without_suffix,
)
from sparface.evaluation.pairs import Pair, draw_pairs, read_pairs, references
from sparface.evaluation.scores import Metric, Verification, distances, verify_pairs
from sparface.faces.aligner import Alignment
from sparface.faces.photos import Photo, fingerprint, keys, list_photos
from sparface.faces.templates import Template
from sparface.faces.workers import aligned
from sparface.files import inside, require_writable, write_whole
from sparface.machine import usable_cores
from sparface.progress import track
from sparface.runs import tracking
from sparface.runs.lineage import Checkpoint, Dataset
from sparface.runs.trained import Trained, open_run
from sparface.shards.format import Face
from sparface.shards.manifest import MANIFEST
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter

DRAWN_PAIRS = 2_000
"""Number of pairs drawn from a shard set for an evaluation without a pairs file."""
DRAWN_SEED = 0


class Validator:
    """Verification during training, on pairs of a shard set that are the same in every run."""

    def __init__(self, shard_set: ShardSet, pairs: int, mirror: bool = False) -> None:
        """Raises `UserError` if no pairs can be drawn from the set. `mirror` is as in `embed`."""
        self.mirror = mirror
        self.pairs = draw_pairs(shard_set, pairs, DRAWN_SEED)
        self.faces = PairFaces(shard_set, references(self.pairs))

    def __call__(self, recognizer: nn.Module) -> dict[str, float]:
        """Return figures for the Euclidean distance: accuracy, standard_error, auc, eer, ….

        Decodes the faces at every call, a batch at a time. All figures are NaN if an embedding is not finite:
        an accuracy and AUC of 0.5 would hide that the recognizer has diverged.
        """
        embeddings = self.faces.embed(recognizer, mirror=self.mirror)
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
    first = np.stack([embeddings[pair.first] for pair in pairs])
    second = np.stack([embeddings[pair.second] for pair in pairs])
    same = np.array([pair.same for pair in pairs])
    folds = np.array([pair.fold for pair in pairs], np.int64)
    return verify_pairs(distances(first, second, metric), same, folds)


def evaluate_verification(
    run: Path,
    *,
    pairs: Path | None = None,
    photos: Path | None = None,
    shards: Path | None = None,
    json_out: Path | None = None,
) -> dict[str, Any]:
    """Verify a run's newest checkpoint and write the result to `run/evaluations/NAME-IMAGES.json`.

    - `pairs` and `photos` (one folder per identity): aligns the photos in the pairs as the training faces
      were. A photo without a face is cropped at its centre and counted. The faces are cached as a shard set
      (see `cache_folder`).
    - `pairs` and `shards`: finds the faces by their source.
    - `shards` alone: draws pairs, always the same ones.

    Faces are embedded as in the run's validations (`validation.mirror`).
    Also adds the figures to the run's metrics and MLflow. Returns the document written: `figures`
    (Euclidean distance), `cosine`, `folds`, `roc`, `pairs` and `provenance`. Raises `UserError` if `run` is
    not a run, faces are missing, or the recognizer has diverged.
    """
    started = time.monotonic()
    if (photos is None) == (shards is None):
        raise UserError("evaluate: give either --photos or --shards")
    if json_out is not None:
        require_writable(json_out)
    trained = open_run(run)
    require_writable(inside(trained.run, "evaluations/new.json"))
    listed = read_pairs(pairs) if pairs else None
    if photos is not None:
        if listed is None:
            raise UserError("evaluate: --photos needs --pairs; give a pairs file that says what to compare")
        shard_set = align_pairs(photos, references(listed), trained)
    else:
        shard_set = ShardSet.open(Path(str(shards)))
    shard_set.require_size(trained.config.size)
    listed = listed or draw_pairs(shard_set, DRAWN_PAIRS, DRAWN_SEED)
    faces = PairFaces(shard_set, references(listed))
    recognizer = trained.network("recognizer", _device())
    progress = track(faces, total=len(faces), unit="faces")
    embeddings = faces.embed(recognizer, progress, mirror=trained.mirror)
    document = _document(_name(pairs, shards, shard_set), _scores(listed, embeddings, trained))
    document["provenance"] |= _provenance(trained, recognizer, faces, pairs, photos) | {
        "seconds": round(time.monotonic() - started, 1)
    }
    _store(document, trained, json_out)
    figures = {f"evaluation/{document['name']}/{key}": value for key, value in document["figures"].items()}
    of, on = Checkpoint.at(trained.checkpoint), Dataset.of(shard_set)
    tracking.add(trained.run, trained.images_seen, figures, of=of, on=on)
    return document


def summary(document: dict[str, Any]) -> str:
    """Summarise an evaluation in a few lines of text."""
    figures, pairs, provenance = document["figures"], document["pairs"], document["provenance"]
    low = " (no false accept: fewer than 1,000 different pairs)" if pairs["different"] < 1000 else ""
    lines = [
        f"{document['name']}: accuracy {figures['accuracy']:.2%} ± {figures['standard_error']:.2%}"
        f" (mean of {pairs['folds']} folds ± standard error)",
        f"AUC {figures['auc']:.4f}   EER {figures['eer']:.2%}"
        f"   TAR at FAR 0.001 {figures['tar_at_far_0.001']:.2%}{low}",
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


def align_pairs(photos: Path, wanted: Collection[str], trained: Trained) -> ShardSet:
    """Align the wanted photos as the training faces were; returns a shard set, from the cache if possible.

    The cache key is a digest of the photos' names and sizes and of the alignment.
    """
    named = ((without_suffix(photo.source), photo) for photo in list_photos(photos))
    found = unique(named, set(wanted), str(photos))
    require_all(wanted, found, f"{photos}", "photos", "use the folder that the pairs were made for")
    chosen = sorted(found.values(), key=lambda photo: (photo.identity, photo.source))
    alignment = Alignment(trained.config.size, training_template(trained)[0], on_no_face="center")
    key = hashlib.sha256(f"{fingerprint(chosen)} {alignment}".encode()).hexdigest()[:16]
    folder = cache_folder() / key
    if not (folder / MANIFEST).is_file():
        _align(chosen, folder, alignment, photos)
    return ShardSet.open(folder)


def _align(chosen: list[Photo], folder: Path, alignment: Alignment, photos: Path) -> None:
    provenance = {"maker": "sparface evaluate", "photos": photos.name, "alignment": str(alignment)}
    size = (alignment.size, alignment.size)
    with ShardSetWriter(folder, name="pairs", size=size, provenance=provenance) as writer:
        done = writer.resumed or 0
        results = aligned(chosen, alignment, _workers(len(chosen) - done), done)
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


def _workers(photos: int) -> int:
    """Number of processes for aligning; starting one takes about as long as aligning fifty photos."""
    return max(1, min(photos // 100, usable_cores(), 8))


def training_template(trained: Trained) -> tuple[Template, bool]:
    """Return the template of the training faces, and whether the checkpoint names it (else it is assumed)."""
    template = trained.facts.get("template")
    return ("box" if template == "box" else "arcface"), template in ("arcface", "box")


# The evaluation document.


def _scores(
    pairs: Sequence[Pair], embeddings: dict[str, Embedding], trained: Trained
) -> dict[Metric, Verification]:
    try:
        return {metric: score(pairs, embeddings, metric) for metric in ("euclidean", "cosine")}
    except ValueError as error:
        raise UserError(f"{trained.checkpoint}: cannot be evaluated: {error}") from None


def _document(name: str, scores: dict[Metric, Verification]) -> dict[str, Any]:
    main = scores["euclidean"]
    curve = main.roc.corners()
    return {
        "name": name,
        "figures": main.figures(),
        "cosine": scores["cosine"].figures(),
        "folds": {"accuracy": main.fold_accuracies.tolist(), "threshold": main.fold_thresholds.tolist()},
        "pairs": {"same": main.same, "different": main.different, "folds": len(main.fold_accuracies)},
        "roc": {"far": curve.far.tolist(), "tar": curve.tar.tolist(), "threshold": curve.thresholds.tolist()},
        "provenance": {"sparface": sparface.__version__, "torch": torch.__version__},
    }


def _provenance(
    trained: Trained, recognizer: nn.Module, faces: PairFaces, pairs: Path | None, photos: Path | None
) -> dict[str, Any]:
    template, known = training_template(trained)
    return {
        "run": trained.run.name,
        "checkpoint": trained.checkpoint.name,
        "checkpoint_digest": _digest(trained.checkpoint / "state.json"),
        "images_seen": trained.images_seen,
        "averaged": trained.averaged,
        "mirror": trained.mirror,
        "parameters": sum(parameter.numel() for parameter in recognizer.parameters()),
        "pairs": pairs.name if pairs else f"{DRAWN_PAIRS} drawn, seed {DRAWN_SEED}",
        "pairs_digest": _digest(pairs) if pairs else None,
        "photos": str(photos) if photos else None,
        "shards": str(faces.shard_set.folder),
        "shards_digest": faces.shard_set.digest,
        "template": template if known else f"{template} (assumed: the checkpoint does not say)",
        "faces": len(faces),
        "centred": faces.methods["center"],
    }


def _name(pairs: Path | None, shards: Path | None, shard_set: ShardSet) -> str:
    parts = ([pairs.stem] if pairs else []) + ([shard_set.manifest.name] if shards else [])
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "-on-".join(parts))


def _store(document: dict[str, Any], trained: Trained, json_out: Path | None) -> None:
    own = inside(trained.run, f"evaluations/{document['name']}-{trained.images_seen:09d}.json")
    for path in (own, json_out):
        if path is not None:
            write_whole(path, json.dumps(document, indent=1).encode())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
