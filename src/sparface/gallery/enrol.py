"""Enrol people: align their photos, embed them, and write a gallery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparface.errors import UserError
from sparface.evaluation.covers import embed_covered, require_arcface, templates
from sparface.evaluation.embed import Image, embed_faces, require_finite
from sparface.evaluation.recognizers import Opened, open_recognizer, usable_device
from sparface.evaluation.settings import kinds
from sparface.evaluation.verification import DEFAULT_SIZE, workers_for
from sparface.faces.aligner import Alignment
from sparface.faces.batches import aligned
from sparface.faces.photos import Photo, list_photos
from sparface.files import require_writable
from sparface.gallery import known
from sparface.gallery.file import Gallery
from sparface.gallery.threshold import Floats, Ints, Threshold, estimated, measured
from sparface.progress import track
from sparface.shards.set import ShardSet

FPIR = 0.01


@dataclass(frozen=True)
class Enrolment:
    """A new gallery, and the photos that are not in it."""

    gallery: Gallery
    skipped: list[tuple[str, str]]
    """(photo, reason)"""
    absent: list[str]
    """People without a usable photo."""

    def __str__(self) -> str:
        found = self.gallery
        lines = [f"{len(found.people)} people enrolled with {found.covers.count('')} photos"]
        if drawn := list(dict.fromkeys(filter(None, found.covers))):
            lines[0] += f", each also with drawn covers: {', '.join(drawn)}"
        lines += [f"skipped {source}: {reason}" for source, reason in self.skipped]
        if self.absent:
            lines.append(f"not enrolled, no usable photo: {', '.join(self.absent)}")
        lines.append(f"threshold {found.threshold:.3f}: {found.basis}")
        return "\n".join(lines)


def enrol(
    photos: Path,
    recognizer: Path,
    out: Path,
    *,
    already_cropped: bool = False,
    calibrate: Path | None = None,
    threshold: float | None = None,
    fpir: float = FPIR,
    covers: str = "",
) -> Enrolment:
    """Make a gallery of the people in a folder with one folder per person (or a CSV), and write it to `out`.

    The threshold is set so that a share of `fpir` of strangers' faces is given a name: measured on
    `calibrate`, a shard set of other people, or estimated from the enrolled people, unless it is given.
    With `covers`, kinds separated by commas (see `covers.embed_covered`), each photo is enrolled with drawn
    covers, too, and a threshold is estimated as if strangers wore them as often.
    Raises `UserError` if no photo has a face, `out` exists, or the recognizer or the set cannot be used.
    """
    _check(out, calibrate, threshold, fpir)
    drawn = kinds(covers)
    opened = open_recognizer(recognizer, usable_device())
    size, template = opened.size or DEFAULT_SIZE, opened.template or "arcface"
    require_arcface(drawn, template)
    alignment = Alignment(size, template, already_cropped)
    listed = list_photos(photos)
    enrolled, skipped = [], []

    def faces() -> Iterator[Image]:
        results = aligned(listed, alignment, workers_for(len(listed)))
        for number, result in enumerate(track(results, total=len(listed), unit="photos")):
            if isinstance(result, str):
                skipped.append((listed[number].source, result))
            else:
                enrolled.append(listed[number])
                yield result[0]

    found = embed_covered(opened.network, faces(), drawn)
    if not len(found):
        reason = skipped[0][1]
        raise UserError(f"{photos}: no photo could be enrolled ({reason}); if they are tight crops of faces, "
                        "give --already-cropped")  # fmt: skip
    require_finite({photo.source: rows.ravel() for photo, rows in zip(enrolled, found, strict=True)})
    people, rows = sorted({photo.identity for photo in enrolled}), 1 + len(drawn)
    embeddings = templates(found).reshape(len(enrolled) * rows, -1)
    person = np.repeat([people.index(photo.identity) for photo in enrolled], rows)
    limit = _threshold(embeddings, person, opened, size, calibrate, threshold, fpir)
    gallery = Gallery(
        people=people,
        embeddings=embeddings.astype(np.float32),
        person=person,
        sources=[photo.source for photo in enrolled for _ in range(rows)],
        covers=["", *drawn] * len(enrolled),
        recognizer=opened.name,
        digest=opened.digest,
        size=size,
        template=template,
        threshold=limit.value,
        basis=limit.basis,
    )
    gallery.save(out)
    if recognizer.exists():  # else it is the name of published weights
        known.note(opened.digest, recognizer)
    return Enrolment(gallery, skipped, _absent(listed, people))


def _check(out: Path, calibrate: Path | None, threshold: float | None, fpir: float) -> None:
    if out.exists():
        raise UserError(f"{out}: already exists; name another file, or remove it")
    require_writable(out)
    if threshold is not None and calibrate is not None:
        raise UserError("enrol: give either --threshold or --calibrate")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"--threshold: {threshold} is not allowed; must be a cosine, between -1 and 1")
    if not 0 < fpir < 1:
        raise UserError(f"--fpir: {fpir} is not allowed; must be above 0 and below 1")


def _threshold(
    embeddings: Floats, person: Ints, opened: Opened, size: int, calibrate: Path | None,
    threshold: float | None, fpir: float
) -> Threshold:  # fmt: skip
    if threshold is not None:
        return Threshold(threshold, "given")
    if calibrate is None:
        return estimated(embeddings, person, fpir)
    others = ShardSet.open(calibrate)
    others.require_size(size)
    sample = embed_faces(opened.network, others, range(len(others)))
    return measured(embeddings, person, sample.embeddings, sample.identity, len(sample.people), fpir)


def _absent(listed: list[Photo], people: list[str]) -> list[str]:
    return sorted({photo.identity for photo in listed} - set(people))
