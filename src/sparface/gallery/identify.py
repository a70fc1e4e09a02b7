"""Name the people on photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparface.errors import UserError
from sparface.evaluation.embed import embed, require_finite
from sparface.evaluation.identification import match
from sparface.evaluation.recognizers import Opened, open_recognizer, usable_device
from sparface.faces.aligner import NO_FACE, Aligner, Alignment
from sparface.faces.photos import BadPhoto, open_photo
from sparface.gallery import file, known
from sparface.gallery.file import Gallery
from sparface.text import printable

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Answer:
    """Who is on a photo, for one of its faces."""

    photo: Path
    box: tuple[float, float, float, float] | None
    """The face in the photo: left, top, right, bottom in pixels; None if it was not detected."""
    faces: int
    """Number of faces that were found on the photo."""
    name: str | None
    """None for a stranger."""
    nearest: str
    """The person with the best score."""
    score: float
    """Cosine with the nearest photo of that person."""

    def __str__(self) -> str:
        where = f" face at {self.box[0]:.0f},{self.box[1]:.0f}" if self.box and self.faces > 1 else ""
        if self.name is None:
            return (
                f"{printable(str(self.photo))}:{where} {UNKNOWN} (nearest {self.nearest}, {self.score:.3f})"
            )
        return f"{printable(str(self.photo))}:{where} {self.name} ({self.score:.3f})"


@dataclass(frozen=True)
class NoAnswer:
    """A photo that nobody can be named on."""

    photo: Path
    reason: str

    def __str__(self) -> str:
        return f"{printable(str(self.photo))}: {self.reason}"


def identify(
    photos: Sequence[Path], gallery: Path, *, recognizer: Path | None = None, already_cropped: bool = False
) -> Iterator[Answer | NoAnswer]:
    """Name the face or faces on each photo, from left to right.

    `recognizer` is the one that the gallery was made with; by default, it is where it was when this user made
    the gallery. Raises `UserError` if the gallery or the recognizer cannot be used.
    """
    enrolled = file.load(gallery)
    opened = _open(enrolled, gallery, recognizer)
    aligner = Aligner(Alignment(enrolled.size, enrolled.template, already_cropped))
    for photo in photos:
        try:
            faces = aligner.align_every(open_photo(photo))
        except BadPhoto as problem:
            hint = "; if it is a tight crop of a face, give --already-cropped"
            yield NoAnswer(photo, f"{problem}{hint if str(problem) == NO_FACE else ''}")
            continue
        named = {number: image for number, (image, _) in enumerate(faces)}
        found = embed(opened.network, named.items())
        require_finite({f"{photo}, face {number + 1}": row for number, row in found.items()})
        embeddings = np.stack(list(found.values())).astype(np.float64)
        boxes = [meta.get("box") for _, meta in faces]
        yield from _answers(photo, embeddings, boxes, enrolled)


def _open(enrolled: Gallery, gallery: Path, recognizer: Path | None) -> Opened:
    path = recognizer or known.find(enrolled.digest)
    if path is None:
        raise UserError(
            f"{gallery}: was made with the recognizer {enrolled.recognizer}, which is not known here; "
            "name it with --checkpoint"
        )
    opened = open_recognizer(path, usable_device())
    if opened.digest != enrolled.digest:
        raise UserError(
            f"{path}: is not the recognizer that {gallery} was made with ({enrolled.recognizer}), or was "
            "trained on since; name that one with --checkpoint, or enrol again"
        )
    return opened


def _answers(
    photo: Path, embeddings: np.ndarray, boxes: Sequence[list[float] | None], enrolled: Gallery
) -> Iterator[Answer]:
    strangers = np.full(len(embeddings), -1)
    if embeddings.shape[1] != enrolled.embeddings.shape[1]:
        raise UserError(f"{photo}: its embedding has another size than those of the gallery; enrol again")
    scores = match(
        enrolled.embeddings.astype(np.float64), enrolled.person, embeddings, strangers, "nearest"
    ).scores
    for row, box in zip(scores, boxes, strict=True):
        best = int(row.argmax())
        nearest, score = enrolled.people[best], float(row[best])
        name = nearest if score > enrolled.threshold else None
        place = (box[0], box[1], box[2], box[3]) if box else None
        yield Answer(photo, place, len(boxes), name, nearest, score)
