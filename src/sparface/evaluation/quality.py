"""Quality of made faces: how much they resemble their sources, and whether a judge recognizes the person.

The judge should not be the recognizer that the faces were made against.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparface.errors import UserError
from sparface.evaluation.bootstrap import Estimate, Statistic, bootstrap, centred
from sparface.evaluation.embed import Image, embed, embed_faces, locate, require_finite
from sparface.evaluation.identification import unit
from sparface.evaluation.manifold import NEIGHBOURS, precision_and_recall
from sparface.evaluation.recognizers import Opened, open_recognizer, usable_device
from sparface.evaluation.results import (
    document_name,
    estimates,
    figures,
    provenance,
    require_outputs,
    store,
)
from sparface.evaluation.weighted import Impostors, mean
from sparface.progress import track
from sparface.shards.format import Face
from sparface.shards.set import ShardSet

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Pictures = dict[str, Floats]
"""`ssim` and `psnr` of pairs of pictures."""

FACES = 5_000
"""Made faces that are measured, spread evenly over the set."""
FAR = 1e-3
_AT_ONCE = 64
_MOST_SOURCES = 2_000
"""Sources that are compared with each other for the judge's threshold, spread over all of them."""
_REPLICATES = 100
"""Replicates of the Fréchet distance, each of which takes two eigendecompositions."""


@dataclass(frozen=True)
class Measured:
    """Made faces and their sources, as far as they are needed for the figures."""

    identity: Ints
    """[N]: index of each made face's person in `people`."""
    people: list[str]
    similarity: Pictures
    """Of each made face [N] and its source."""
    made: Floats
    """[N, E]: embeddings of length 1."""
    parent: Ints
    """[N]: index of each made face's source."""
    sources: Floats
    """[M, E]"""
    owner: Ints
    """[M]: index of each source's person in `people`."""


def evaluate_quality(
    judge: Path, made: Path, sources: Path, *, faces: int = FACES, json_out: Path | None = None
) -> dict[str, Any]:
    """Measure a made set against the set that it was made from, with any recognizer as the judge.

    Figures, each with a 95 % interval by bootstrap over people:

    - `ssim`, `psnr` (dB): mean structural similarity (Wang et al. 2004) and peak signal-to-noise ratio of
      made faces and their sources
    - `cosine_to_source`: mean cosine between the judge's embeddings of both
    - `identity_kept`: share of made faces for which this cosine exceeds the judge's threshold, which is that
      of 1 in 1,000 pairs of sources of different people
    - `frechet`: Fréchet distance between the judge's embeddings of all made faces and of their sources
    - `precision`, `recall`: share of made faces among the sources, and of sources among the made faces, by
      the judge's embeddings of as many of both (Kynkäänniemi et al. 2019)

    `faces` made faces are measured, spread evenly over the set. Returns the document (see `results`). Raises
    `UserError` if the sets do not belong together.
    """
    started = time.monotonic()
    if faces < 2:
        raise UserError(f"--faces: {faces} is not allowed; must be at least 2")
    opened = open_recognizer(judge, usable_device())
    require_outputs(opened, json_out)
    made_set, source_set = ShardSet.open(made), ShardSet.open(sources)
    maker = made_set.manifest.provenance
    _require_pair(made_set, source_set)
    measured = measure(opened, made_set, source_set, faces)
    threshold = judge_threshold(measured)
    document = {
        "kind": "quality",
        "name": document_name("quality", made_set.manifest.name),
        **figures(quality(measured, threshold), measured.people),
        "threshold": threshold if np.isfinite(threshold) else None,
        "independent": opened.digest not in (maker.get("recognizer"), maker.get("judge")),
        "provenance": provenance(opened, made_set)
        | {"sources": str(source_set.folder), "sources_digest": source_set.digest}
        | {"faces": len(measured.identity), "seconds": round(time.monotonic() - started, 1)},
    }
    store(document, opened, made_set, json_out)
    return document


def _require_pair(made: ShardSet, sources: ShardSet) -> None:
    if made.manifest.size != sources.manifest.size:
        raise UserError(f"{made.folder}: has faces of another size than {sources.folder}; give its sources")
    named = made.manifest.provenance.get("sources")
    if isinstance(named, str) and named != sources.digest:
        raise UserError(f"{made.folder}: was made from another set than {sources.folder}; give that one")


def measure(opened: Opened, made: ShardSet, sources: ShardSet, faces: int) -> Measured:
    """Embed made faces and their sources, and compare the pictures. Raises `UserError` for a made face that
    does not name its source, or whose source is missing."""
    chosen = np.unique(np.linspace(0, len(made) - 1, min(faces, len(made))).round().astype(np.int64))
    parents: dict[int, str] = {}
    names: dict[int, str] = {}

    def stream() -> Iterator[tuple[str, Image]]:
        for place, face in made.faces_at(chosen):
            if face.meta.get("synthetic", True):
                parents[place], names[place] = _parent(face, made), face.identity
                yield face.key, face.image

    embedded = embed(opened.network, track(stream(), total=len(chosen), unit="faces"))
    require_finite(embedded)
    if not embedded:
        raise UserError(f"{made.folder}: has no made faces; give a set that `sparface generate` wrote")
    places = locate(sources, set(parents.values()))
    sample = embed_faces(opened.network, sources, set(places.values()))
    people = sorted({*names.values(), *sample.people})
    rows = {place: row for row, place in enumerate(sample.places.tolist())}
    return Measured(
        _indexes(list(names.values()), people),
        people,
        _similarity(made, sources, {place: places[parent] for place, parent in parents.items()}),
        unit(np.stack(list(embedded.values())).astype(np.float64)),
        np.array([rows[places[parent]] for parent in parents.values()], np.int64),
        unit(sample.embeddings),
        _indexes([sample.people[number] for number in sample.identity], people),
    )


def _parent(face: Face, made: ShardSet) -> str:
    parent = face.meta.get("parent")
    if not isinstance(parent, str):
        raise UserError(f"{made.folder}: {face.key} does not name its source; give a set of made faces")
    return parent


def _indexes(names: list[str], people: list[str]) -> Ints:
    index = {name: number for number, name in enumerate(people)}
    return np.array([index[name] for name in names], np.int64)


def _similarity(made: ShardSet, sources: ShardSet, source_of: dict[int, int]) -> dict[str, Floats]:
    """`ssim` and `psnr` of made faces and their sources, whose places are given: made → source."""
    places = list(source_of)
    parts: list[Pictures] = []
    for first in range(0, len(places), _AT_ONCE):
        block = places[first : first + _AT_ONCE]
        theirs = {place: face.image for place, face in sources.faces_at({source_of[p] for p in block})}
        pairs = [(face.image, theirs[source_of[place]]) for place, face in made.faces_at(block)]
        parts.append(alike(*(np.stack(images) for images in zip(*pairs, strict=True))))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def alike(faces: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> Pictures:
    """`ssim` and `psnr` (in dB) of pairs of pictures, uint8 [N, H, W, 3].

    Pictures that are equal have a PSNR of that of the smallest difference: one grey level in one value.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2).float() for images in (faces, others))
    found = structural_similarity_index_measure(x, y, data_range=255.0, reduction="none")
    assert isinstance(found, Tensor)
    least = 1.0 / x[0].numel()
    error = ((x - y) ** 2).double().mean((1, 2, 3)).clamp(min=least)
    return {"ssim": found.double().numpy(), "psnr": (10 * torch.log10(255.0**2 / error)).numpy()}


def judge_threshold(measured: Measured) -> float:
    """The cosine that 1 in 1,000 pairs of sources of different people exceed; NaN without such pairs."""
    used = np.unique(np.linspace(0, len(measured.sources) - 1, _MOST_SOURCES).round().astype(np.int64))
    sources, owner = measured.sources[used], measured.owner[used]
    one, other = np.nonzero(np.triu(owner[:, None] != owner))
    scores, owners = (sources @ sources.T)[one, other], (owner[one], owner[other])
    return float(Impostors.of(scores, *owners).threshold(np.ones((1, len(measured.people))), FAR)[0])


def quality(measured: Measured, threshold: float) -> dict[str, Estimate]:
    """The figures by name."""
    people, owner = len(measured.people), measured.identity
    cosine = (measured.made * measured.sources[measured.parent]).sum(axis=1)
    values = measured.similarity | {"cosine_to_source": cosine}
    if np.isfinite(threshold):
        values["identity_kept"] = (cosine > threshold).astype(np.float64)
    statistics = {name: mean(one, owner, people) for name, one in values.items()} | manifolds(measured)
    found = estimates(statistics, people)
    if len(owner) > 1:
        found["frechet"] = centred(
            bootstrap(lambda w: frechet_statistic(measured, w), people, replicates=_REPLICATES)
        )
    return found


def manifolds(measured: Measured) -> dict[str, Statistic]:
    """`precision` and `recall`; nothing if there are too few faces. People are resampled, but the balls
    around faces stay."""
    count, people = min(len(measured.made), len(measured.sources)), len(measured.people)
    if count <= NEIGHBOURS:
        return {}
    made, sources = (
        np.linspace(0, len(x) - 1, count).round().astype(np.int64) for x in (measured.made, measured.sources)
    )
    precise, recalled = precision_and_recall(measured.sources[sources], measured.made[made])
    return {
        "precision": mean(precise, measured.identity[made], people),
        "recall": mean(recalled, measured.owner[sources], people),
    }


def frechet_statistic(measured: Measured, weights: Floats) -> Floats:
    """The Fréchet distance between made faces and their sources in each replicate."""
    theirs = measured.sources[measured.parent]
    return np.array([frechet(measured.made, theirs, row[measured.identity]) for row in weights])


def frechet(first: Floats, second: Floats, weights: Floats) -> float:
    """The Fréchet distance between two samples [N, E] with weights [N], taken as normal distributions.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), with unbiased covariances (Heusel et al. 2017, for embeddings of
    a judge in place of Inception's). NaN if the weights sum to less than 2.
    """
    total = weights.sum()
    if total < 2:
        return float("nan")
    means, covariances = [], []
    for sample in (first, second):
        mean_of = weights @ sample / total
        centred = (sample - mean_of) * np.sqrt(weights)[:, None]
        means.append(mean_of)
        covariances.append(centred.T @ centred / (total - 1))
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)
    shift = float(((means[0] - means[1]) ** 2).sum())
    spread = float(np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(product).sum())
    return max(0.0, shift + spread)


def summary(document: dict[str, Any]) -> str:
    """Summarise an evaluation in a few lines of text."""
    rows = {
        "ssim": "SSIM",
        "psnr": "PSNR (dB)",
        "cosine_to_source": "cosine to the source",
        "identity_kept": "identity kept",
        "frechet": "Fréchet distance",
        "precision": "precision",
        "recall": "recall",
    }
    lines = []
    for name, title in rows.items():
        if name in document["figures"]:
            low, high = document["intervals"][name]
            between = "" if low is None or high is None else f"  [{low:.4g}, {high:.4g}]"
            lines.append(f"{title:22} {document['figures'][name]:.4g}{between}")
    lines.append(f"{document['provenance']['faces']} made faces; judge {document['provenance']['run']}")
    if not document["independent"]:
        lines.append("the judge took part in making the faces: give another one for an independent judgement")
    return "\n".join(lines)
