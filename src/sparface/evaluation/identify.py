"""Evaluate identification on a shard set: gallery and conditions from a CSV, or drawn galleries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparface.errors import UserError
from sparface.evaluation.bootstrap import Estimate
from sparface.evaluation.covers import embed_covered, require_arcface, templates
from sparface.evaluation.embed import Sample, embed_faces, locate
from sparface.evaluation.identification import (
    Draw,
    Floats,
    Ints,
    Matches,
    among_best,
    det,
    draw,
    impostors,
    match,
    statistics,
)
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
from sparface.evaluation.settings import IdentifySettings, Template, kinds
from sparface.evaluation.weighted import average
from sparface.files import read_table
from sparface.progress import track
from sparface.shards.set import ShardSet

GALLERY = "gallery"
"""The condition, in a CSV, of the images that may be enrolled."""


@dataclass(frozen=True)
class Protocol:
    """Which faces may be enrolled, and the probes of each condition, by index."""

    pool: Ints
    conditions: dict[str, Ints]
    """Empty if probes are the faces of the pool that are not enrolled."""

    @property
    def used(self) -> Ints:
        return np.unique(np.concatenate([self.pool, *self.conditions.values()]))


def read_protocol(table: Path, shard_set: ShardSet) -> Protocol:
    """Read a CSV with the columns `face` and `condition`.

    A face is named by its key or by its source without suffix. Faces whose condition is `gallery` may be
    enrolled; all others are probes. Faces that are not listed are not used. Raises `UserError` naming the
    line for an empty field or a face that is listed twice, or if faces are missing from the set, or there is
    no gallery or no probe.
    """
    conditions: dict[str, str] = {}
    for line, row in enumerate(read_table(table, ("face", "condition")), start=2):
        face, condition = ((row[name] or "").strip() for name in ("face", "condition"))
        if not face or not condition or not condition.isprintable() or len(condition) > 100:
            raise UserError(f"{table}, line {line}: face or condition is empty or not printable; correct it")
        if face in conditions:
            raise UserError(f"{table}, line {line}: {face} is listed twice; remove one of the lines")
        conditions[face] = condition
    places = locate(shard_set, conditions)
    if len(set(places.values())) < len(places):
        raise UserError(f"{table}: lists a face by two names; use either keys or sources")
    found: dict[str, list[int]] = {}
    for face, condition in conditions.items():
        found.setdefault(condition, []).append(places[face])
    grouped = {name: np.array(sorted(rows), np.int64) for name, rows in found.items()}
    if GALLERY not in grouped or len(grouped) < 2:
        missing = "probe" if GALLERY in grouped else f"face of the condition '{GALLERY}'"
        raise UserError(f"{table}: has no {missing}; list the gallery and the probes")
    return Protocol(grouped.pop(GALLERY), grouped)


def evaluate_identification(
    recognizer: Path,
    shards: Path,
    *,
    conditions: Path | None = None,
    settings: IdentifySettings | None = None,
    purify: str = "",
    json_out: Path | None = None,
) -> dict[str, Any]:
    """Identify the faces of a shard set, and return the document of the results.

    `recognizer` is whatever `open_recognizer` opens. With `conditions` (see `read_protocol`), figures are
    also given for each condition, as `CONDITION/rank_1`; without, galleries are drawn. `purify` names what
    cleans all faces first (see `open_cleaner`). The document has `figures`, `intervals`, `bootstrap` (see
    `results.figures`), `conditions` (numbers of probes and people, and the threshold at FAR 0.001 of the
    first gallery), `images` (rank-1 by number of gallery images), `required` (the least number that reaches
    the target, or null), `det` and `provenance`. For a run, it is also written to `RUN/evaluations/`, and the
    figures are added to its metrics and MLflow.

    Raises `UserError` for settings, faces or an embedding that cannot be used.
    """
    started = time.monotonic()
    settings = settings or IdentifySettings()
    settings.validate()
    opened = open_recognizer(recognizer, usable_device()).purified(purify)
    require_outputs(opened, json_out)
    shard_set = ShardSet.open(shards)
    opened.require_size(shard_set)
    everyone = Protocol(np.arange(len(shard_set), dtype=np.int64), {})
    protocol = read_protocol(conditions, shard_set) if conditions else everyone
    covers = kinds(settings.covers)
    require_arcface(covers, opened.template)
    sample = embed_faces(opened.network, shard_set, protocol.used)
    covered = None
    if covers:
        pool = (face.image for _, face in shard_set.faces_at(protocol.pool))
        shown = track(pool, total=len(protocol.pool), unit="faces")
        covered = embed_covered(opened.network, shown, covers, seed=settings.seed)
    on = (conditions.stem if conditions else "", shard_set.manifest.name)
    document = {
        "kind": "identification",
        "name": document_name("identify", *on, cleaner=opened.cleaner),
        **identify(sample, protocol, settings, covered),
        "provenance": provenance(opened, shard_set)
        | {"conditions": conditions.name if conditions else None, "settings": vars(settings)}
        | {"faces": len(protocol.used), "seconds": round(time.monotonic() - started, 1)},
    }
    store(document, opened, shard_set, json_out)
    return document


def identify(
    sample: Sample, protocol: Protocol, settings: IdentifySettings, covered: Floats | None = None
) -> dict[str, Any]:
    """Everything that is measured, as parts of the document. Raises `UserError` if nobody can be enrolled
    and probed.

    `covered` [pool, 1 + covers, E] are the faces of the pool, without and with covers, as by `embed_covered`.
    """
    rows = np.searchsorted(sample.places, protocol.pool)
    identity, people = sample.identity, len(sample.people)
    most = int(np.bincount(identity[rows]).max())
    images = min(settings.images or (most if protocol.conditions else 1), most)
    is_drawn = not protocol.conditions or images < most or settings.unenrolled > 0
    nested = [
        draw(identity, rows, images, settings.seed + number, hold_out=not protocol.conditions,
             unenrolled=_strangers(identity[rows], settings, number))
        for number in range(settings.draws if is_drawn else 1)
    ]  # fmt: skip
    matcher = Matcher(sample, protocol, settings.template, covered)
    matches = [matcher.match(draws[-1]) for draws in nested]
    found: dict[str, Estimate] = {}
    for condition in matches[0]:
        every = [statistics(one[condition], people) for one in matches]
        names = set(every[0]).intersection(*every)
        averaged = {name: average([one[name] for one in every]) for name in every[0] if name in names}
        prefix = f"{condition}/" if condition else ""
        found |= {f"{prefix}{name}": one for name, one in estimates(averaged, people).items()}
    if "rank_1" not in found:
        raise UserError("identify: no probe shows an enrolled person; give more faces per person")
    curve = _by_images(matcher, nested)
    reached = [row["images"] for row in curve if row["rank_1"] >= settings.target]
    whole = matches[0][""]
    return {
        **figures(found, sample.people),
        "conditions": {name: _counts(one) for name, one in matches[0].items()},
        "images": curve,
        "required": min(reached, default=None),
        "det": None if whole.enrolled.all() else det(whole),
    }


def _strangers(identity: Ints, settings: IdentifySettings, number: int) -> list[int]:
    people = np.unique(identity)
    count = round(settings.unenrolled * len(people))
    rng = np.random.default_rng([settings.seed, number])
    return list(rng.permutation(people)[:count].tolist())


@dataclass(frozen=True)
class Matcher:
    """Compares the probes with galleries."""

    sample: Sample
    protocol: Protocol
    template: Template
    covered: Floats | None
    """[pool, 1 + covers, E], as by `embed_covered`."""

    def match(self, drawn: Draw) -> dict[str, Matches]:
        """Condition → matches of its probes; the condition '' has all probes."""
        sample, conditions = self.sample, self._conditions()
        probes = np.concatenate(list(conditions.values())) if conditions else drawn.probes
        if not len(drawn.enrolled) or not len(probes):
            raise UserError("identify: nobody is left to enrol or to probe; give more faces per person")
        gallery, identity = self._gallery(drawn.enrolled)
        whole = match(gallery, identity, sample.embeddings[probes], sample.identity[probes], self.template)
        return {"": whole} | {name: whole.part(np.isin(probes, rows)) for name, rows in conditions.items()}

    def _conditions(self) -> dict[str, Ints]:
        """Condition → rows of its probes in the sample."""
        return {
            name: np.searchsorted(self.sample.places, at) for name, at in self.protocol.conditions.items()
        }

    def _gallery(self, enrolled: Ints) -> tuple[Floats, Ints]:
        """The embeddings [m,E] that probes are compared with, and the person of each [m]."""
        person = self.sample.identity[enrolled]
        if self.covered is None:
            return self.sample.embeddings[enrolled], person
        rows = templates(self.covered[np.searchsorted(self.protocol.pool, self.sample.places[enrolled])])
        return rows.reshape(-1, rows.shape[2]), np.repeat(person, rows.shape[1])


def _by_images(matcher: Matcher, nested: list[list[Draw]]) -> list[dict[str, float]]:
    """Rank-1 of all probes by the number of gallery images, with intervals."""
    people, rows = len(matcher.sample.people), []
    for number in range(len(nested[0])):
        each = [among_best(matcher.match(draws[number])[""], 1, people) for draws in nested]
        one = estimates({"rank_1": average(each)}, people)["rank_1"]
        rows.append({"images": number + 1, "rank_1": one.value, "low": one.low, "high": one.high})
    return rows


def _counts(matches: Matches) -> dict[str, Any]:
    everyone = np.ones((1, int(max(matches.people.max(), matches.probes.max())) + 1))
    threshold = float(impostors(matches).threshold(everyone, 1e-3)[0]) if len(matches.people) > 1 else np.nan
    return {
        "probes": len(matches.probes),
        "enrolled_probes": int(matches.enrolled.sum()),
        "people": len(np.unique(matches.probes)),
        "gallery": len(matches.people),
        "threshold": threshold if np.isfinite(threshold) else None,
    }


def summary(document: Mapping[str, Any]) -> str:
    """Summarise an evaluation in a table, one line per condition."""
    names = ["rank_1", "tar_at_far_0.001", "tpir_at_fpir_0.01"]
    titles = ["rank 1", "TAR at FAR 0.001", "TPIR at FPIR 0.01"]
    shown = [
        (name, title)
        for name, title in zip(names, titles, strict=True)
        if any(key.endswith(name) for key in document["figures"])
    ]
    width = max(len(condition) for condition in [*document["conditions"], "all probes"])
    lines = [f"{'':{width}}  probes  " + "".join(f"{title:<22}" for _, title in shown)]
    for condition, counts in document["conditions"].items():
        prefix = f"{condition}/" if condition else ""
        cells = [percent(document, prefix + name) for name, _ in shown]
        label = condition or "all probes"
        lines.append(f"{label:{width}}  {counts['probes']:>6}  " + "".join(f"{cell:<22}" for cell in cells))
    if len(document["images"]) > 1:
        lines += [
            f"rank 1 with {row['images']:>2} gallery images: {row['rank_1']:.1%}"
            for row in document["images"]
        ]
        target, required = document["provenance"]["settings"]["target"], document["required"]
        lines.append(f"gallery images required for {target:.0%}: {required or 'more than were tried'}")
    return "\n".join(line.rstrip() for line in lines)
