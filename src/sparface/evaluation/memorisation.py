"""Are made faces copies of training faces? By the nearest training face of each, as a judge sees it.

Held-out real faces say how near a face comes to the training faces without having been copied. They should be
other photos of the same people.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from torch import nn

from sparface.errors import UserError
from sparface.evaluation.embed import Image, embed, pixels_digest, require_finite
from sparface.evaluation.identification import unit
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
from sparface.evaluation.weighted import Impostors, accepted, mean
from sparface.files import require_writable, write_whole
from sparface.progress import track
from sparface.shards.set import ShardSet

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FACES = 5_000
"""Faces of a set that are measured, spread evenly over it. All training faces are searched."""
SHARE = 0.01
"""Share of held-out faces that count as copies; they are none, so it is the rate of false alarms."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_COLUMNS, _ROWS, _TILE, _GAP, _TITLE = 10, 2, 96, 6, 18
"""Layout of the contact sheet: pairs in a row, rows of pairs, and sizes in pixels."""
_AT_ONCE = 512


@dataclass(frozen=True)
class Faces:
    """Embedded faces of a set."""

    places: Ints
    """[N]: index of each face in the set."""
    people: list[str]
    """[N]: the person of each face."""
    pictures: list[bytes]
    """[N]: digest of the pixels of each face."""
    embeddings: Floats
    """[N,E], of length 1."""


@dataclass(frozen=True)
class Nearest:
    """For each of some faces, the most alike training face."""

    of: Faces
    row: Ints
    """[N]: index of the training face in its `Faces`."""
    cosine: Floats
    """[N]"""


def evaluate_memorisation(
    judge: Path,
    made: Path,
    training: Path,
    held_out: Path,
    *,
    faces: int = FACES,
    sheet: Path | None = None,
    json_out: Path | None = None,
) -> dict[str, Any]:
    """Compare made faces with the faces that their maker was trained on, with any recognizer as the judge.

    Figures, each with a 95 % interval by bootstrap over people:

    - `copies`: share of made faces that are more like a training face than 99 % of held-out faces are
    - `made`, `held_out`: mean cosine to the most alike training face
    - `same_person`: share of made faces whose most alike training face is of the person that they show

    `quantiles` has those of both cosines. `sheet` is a PNG of the most alike pairs. Returns the document (see
    `results`). Raises `UserError` if sets cannot be used, or if held-out faces are in the training set.
    """
    started = time.monotonic()
    if faces < 1:
        raise UserError(f"--faces: {faces} is not allowed; must be at least 1")
    if sheet is not None:
        require_writable(sheet)
    opened = open_recognizer(judge, usable_device())
    require_outputs(opened, json_out)
    sets = [ShardSet.open(folder) for folder in (made, training, held_out)]
    of_training, of_made, of_held_out = _measure(opened.network, sets, faces)
    if sheet is not None:
        _write_sheet(sheet, sets, of_made, of_held_out, of_training)
    people, maker = sorted({*of_made.of.people, *of_held_out.of.people}), sets[0].manifest.provenance
    document = {
        "kind": "memorisation",
        "name": document_name("memorisation", sets[0].manifest.name),
        **figures(estimates(memorised(of_made, of_held_out, of_training, people), len(people)), people),
        "quantiles": {
            "at": QUANTILES,
            "made": _quantiles(of_made),
            "held_out": _quantiles(of_held_out),
        },
        "independent": opened.digest not in (maker.get("recognizer"), maker.get("judge")),
        "provenance": provenance(opened, sets[0])
        | {"training_digest": sets[1].digest, "held_out_digest": sets[2].digest}
        | {"faces": len(of_made.row), "held_out_faces": len(of_held_out.row)}
        | {"seconds": round(time.monotonic() - started, 1)},
    }
    store(document, opened, sets[0], json_out)
    return document


def _quantiles(found: Nearest) -> list[float]:
    return [float(value) for value in np.quantile(found.cosine, QUANTILES).round(6)]


def _measure(network: nn.Module, sets: Sequence[ShardSet], most: int) -> tuple[Faces, Nearest, Nearest]:
    """Embed the made, training and held-out faces; returns the training faces, and what is nearest to the
    others. Raises `UserError` if the sets do not go together."""
    made, training, held_out = sets
    for one in (training, held_out):
        if one.manifest.size != made.manifest.size:
            raise UserError(
                f"{one.folder}: has faces of another size than {made.folder}; give sets of one size"
            )
    known = _embed(network, training, None)
    others = _embed(network, held_out, most)
    if shared := len({*known.pictures} & {*others.pictures}):
        raise UserError(
            f"{held_out.folder}: {shared} of its faces are in {training.folder}, too; give photos that were "
            "not trained on"
        )
    return known, nearest(_embed(network, made, most), known), nearest(others, known)


def memorised(made: Nearest, held_out: Nearest, training: Faces, people: Sequence[str]) -> dict[str, Any]:
    """The figures by name, as statistics of the people."""
    index = {name: number for number, name in enumerate(people)}
    count = len(people)
    one, other = (np.array([index[name] for name in each.of.people]) for each in (made, held_out))
    same = [training.people[row] == name for row, name in zip(made.row, made.of.people, strict=True)]
    return {
        "copies": accepted(made.cosine, one, Impostors.of(held_out.cosine, other), SHARE),
        "made": mean(made.cosine, one, count),
        "held_out": mean(held_out.cosine, other, count),
        "same_person": mean(same, one, count),
    }


def nearest(faces: Faces, training: Faces) -> Nearest:
    """Find the most alike training face of each face."""
    rows, cosines = [], []
    for first in range(0, len(faces.embeddings), _AT_ONCE):
        found = faces.embeddings[first : first + _AT_ONCE] @ training.embeddings.T
        rows.append(found.argmax(axis=1))
        cosines.append(found.max(axis=1))
    return Nearest(faces, np.concatenate(rows), np.concatenate(cosines))


def _embed(network: nn.Module, shard_set: ShardSet, most: int | None) -> Faces:
    """Embed the faces of a set, `most` of them spread evenly; not those that a made set has copied."""
    count = len(shard_set) if most is None else min(most, len(shard_set))
    chosen = np.unique(np.linspace(0, len(shard_set) - 1, count).round().astype(np.int64))
    places: list[int] = []
    people: list[str] = []
    pictures: list[bytes] = []

    def stream() -> Iterator[tuple[str, Image]]:
        for place, face in shard_set.faces_at(chosen):
            if face.meta.get("variant") != 0:
                places.append(place)
                people.append(face.identity)
                pictures.append(pixels_digest(face.image))
                yield face.key, face.image

    found = embed(network, track(stream(), total=len(chosen), unit="faces"))
    require_finite(found)
    if not found:
        raise UserError(f"{shard_set.folder}: has no faces to measure; give another set")
    return Faces(np.array(places), people, pictures, unit(np.stack(list(found.values())).astype(np.float64)))


def _write_sheet(
    path: Path, sets: Sequence[ShardSet], made: Nearest, held_out: Nearest, training: Faces
) -> None:
    """Write a PNG with the most alike pairs of made and training faces, then of held-out ones: each face
    above its training face, with the cosine."""
    blocks = [
        ("made faces, above the most alike training faces", made, sets[0]),
        ("held-out faces, above the most alike training faces", held_out, sets[2]),
    ]
    step, height = _TILE + _GAP, 2 * _TILE + _TITLE + _GAP
    block_height = _TITLE + _ROWS * height
    sheet = Picture.new("RGB", (_COLUMNS * step, len(blocks) * block_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (title, pairs, shard_set) in enumerate(blocks):
        top = number * block_height
        draw.text((2, top + 2), title, fill="black", font=font)
        for place, row in enumerate(np.argsort(-pairs.cosine)[: _COLUMNS * _ROWS].tolist()):
            x, y = place % _COLUMNS * step, top + _TITLE + place // _COLUMNS * height
            both = ((shard_set, pairs.of.places[row]), (sets[1], training.places[pairs.row[row]]))
            for below, (of, at) in enumerate(both):
                ((_, face),) = of.faces_at([int(at)])
                tile = Picture.fromarray(face.image).resize((_TILE, _TILE), Picture.Resampling.LANCZOS)
                sheet.paste(tile, (x, y + below * _TILE))
            draw.text((x + 2, y + 2 * _TILE), f"{pairs.cosine[row]:.3f}", fill="gray", font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    write_whole(path, file.getvalue())


def summary(document: dict[str, Any]) -> str:
    """Summarise an evaluation in a few lines of text."""
    found, quantiles = document["figures"], document["quantiles"]
    lines = [
        f"copies {percent(document, 'copies')}; {SHARE:.0%} of held-out faces count as such",
        f"cosine to the most alike training face: made {found['made']:.3f}, held out {found['held_out']:.3f}",
        f"of the person that they show: {percent(document, 'same_person')}",
        f"{'quantile':<10}" + "".join(f"{at:>7.0%}" for at in quantiles["at"]),
        *(
            f"{name.replace('_', ' '):<10}" + "".join(f"{value:>7.3f}" for value in quantiles[name])
            for name in ("made", "held_out")
        ),
        f"{document['provenance']['faces']} made and {document['provenance']['held_out_faces']} held-out "
        f"faces; judge {document['provenance']['run']}",
    ]
    if not document["independent"]:
        lines.append("the judge took part in making the faces: give another one for an independent judgement")
    return "\n".join(lines)
