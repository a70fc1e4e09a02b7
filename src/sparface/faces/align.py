"""Align the faces in a collection of photos to a template and write them as a shard set."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparface.config import Encoding
from sparface.errors import UserError
from sparface.faces.aligner import Alignment
from sparface.faces.batches import aligned
from sparface.faces.photos import Photo, fingerprint, keys, list_photos
from sparface.faces.templates import Template
from sparface.files import write_whole
from sparface.machine import usable_cores
from sparface.progress import track
from sparface.shards.format import Face, set_name
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter

REJECTED = "rejected.csv"


@dataclass
class AlignReport:
    """The result of an alignment."""

    photos: int
    """Number of photos processed."""
    faces: int
    identities: int
    single: int
    """Identities with only one face. They are kept; their groups repeat that face."""
    methods: dict[str, int]
    """Faces by method: `landmarks`, `box`, `center`."""
    rejected: list[tuple[str, str]] = field(repr=False)
    """Photos that were left out: (source, reason)."""
    seconds: float

    def __str__(self) -> str:
        methods = ", ".join(f"{count} by {name}" for name, count in sorted(self.methods.items()))
        lines = [
            f"{self.faces} faces of {self.identities} identities from {self.photos} photos"
            f" in {self.seconds:.0f} s ({methods}); {len(self.rejected)} rejected"
        ]
        if self.single:
            have = "identity has" if self.single == 1 else "identities have"
            lines.append(f"{self.single} {have} only one face (kept; groups repeat the face)")
        lines += [f"rejected: {count} x {reason}" for reason, count in _reasons(self.rejected).most_common(8)]
        return "\n".join(lines)


def _reasons(rejected: Iterable[tuple[str, str]]) -> Counter[str]:
    return Counter(reason.split(":")[0].split(" (")[0] for _, reason in rejected)


def align(
    photos: Path,
    out: Path,
    *,
    size: int = 128,
    template: Template = "arcface",
    already_cropped: bool = False,
    workers: int = 0,
    encoding: Encoding = "png",
    overwrite: bool = False,
    follow_links: bool = False,
) -> AlignReport:
    """Align the photos in a folder with one folder per identity, or in a CSV, into the shard set `out`.

    Columns of a CSV besides `path` and `identity`, such as `expression`, become labels of its faces.

    Faces are `size` × `size` pixels. `already_cropped` is for photos that show little more than a face:
    their border is extended to find landmarks, and a photo without landmarks is only resized. Otherwise,
    photos without a face are left out. So are links that leave the folder, unless `follow_links` is set.
    Photos that are left out are listed in `out/rejected.csv`.

    The work is spread over `workers` processes (0: one per core, at most 8); the result does not depend on
    their number. If it is interrupted, the same call resumes after the last finished shard.

    Raises `UserError` if there are no photos, no photo has a face (no files are left behind), `out` contains
    a finished set and `overwrite` is not set, or a setting is invalid.
    """
    started = time.monotonic()
    alignment = Alignment(size, template, already_cropped)
    alignment.validate()
    listed = list_photos(Path(photos), follow_links=follow_links)
    with (
        _no_empty_folder(Path(out)),
        ShardSetWriter(
            out,
            name=set_name(Path(out)),
            size=(size, size),
            encoding=encoding,
            provenance=_provenance(Path(photos), listed, alignment),
            overwrite=overwrite,
            companions=[REJECTED],
            columns=sorted({column for photo in listed for column, _ in photo.labels}),
        ) as writer,
    ):
        progress = _write(writer, listed, alignment, workers or min(usable_cores(), 8))
        _check_any(photos, listed, progress)
        _write_rejected(Path(out) / REJECTED, progress.rejected)
        writer.record(rejected=len(progress.rejected), methods=dict(sorted(progress.methods.items())))
    return _report(ShardSet.open(out), len(listed), progress, time.monotonic() - started)


def _provenance(photos: Path, listed: list[Photo], alignment: Alignment) -> dict[str, Any]:
    """The inputs and settings that determine the faces."""
    return {
        "maker": "sparface align",
        "photos": {"folder": photos.name, "count": len(listed), "fingerprint": fingerprint(listed)},
        "template": alignment.template,
        "already_cropped": alignment.already_cropped,
        "on_no_face": alignment.on_no_face,
    }


@contextlib.contextmanager
def _no_empty_folder(out: Path) -> Iterator[None]:
    """On an error, delete the folder if it is new and empty."""
    existed = out.exists()
    try:
        yield
    except UserError:
        if not existed:
            with contextlib.suppress(OSError):  # not empty: finished shards to resume from
                out.rmdir()
        raise


@dataclass
class _Progress:
    """The progress of an alignment, stored with every finished shard for resuming."""

    photos: int = 0
    methods: dict[str, int] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def load(cls, stored: Any, rejected: Iterable[tuple[str, str]]) -> _Progress:
        if stored is None:
            return cls()
        return cls(
            stored["photos"], dict(stored["methods"]), [(source, reason) for source, reason in rejected]
        )

    def dump(self) -> dict[str, Any]:
        """Everything but the rejected photos, which may be many and are stored as the writer's notes."""
        return {"photos": self.photos, "methods": dict(self.methods)}


def _write(writer: ShardSetWriter, listed: list[Photo], alignment: Alignment, workers: int) -> _Progress:
    progress = _Progress.load(writer.resumed, writer.resumed_notes)
    noted = len(progress.rejected)
    results = aligned(listed, alignment, workers, progress.photos)
    ahead = slice(progress.photos, None)
    work = zip(listed[ahead], keys(listed)[ahead], results, strict=True)
    for photo, key, result in track(work, total=len(listed), done=progress.photos, unit="photos"):
        progress.photos += 1
        if isinstance(result, str):
            progress.rejected.append((photo.source, result))
            continue
        image, meta = result
        progress.methods[meta["method"]] = progress.methods.get(meta["method"], 0) + 1
        face = Face(key, image, photo.identity, photo.source, meta | dict(photo.labels))
        writer.add(face, progress.dump(), progress.rejected[noted:])
        noted = len(progress.rejected)
    return progress


def _check_any(photos: Path, listed: list[Photo], progress: _Progress) -> None:
    if not progress.methods:
        counted = _reasons(progress.rejected).most_common(3)
        reasons = "; ".join(f"{count} x {reason}" for reason, count in counted)
        raise UserError(f"{photos}: no face found in {len(listed)} photos ({reasons}); check the folder")


def _write_rejected(path: Path, rejected: Iterable[tuple[str, str]]) -> None:
    """Write the photos that were left out as a CSV with the columns path and reason."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "reason"), *rejected])
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))


def _report(shards: ShardSet, photos: int, progress: _Progress, seconds: float) -> AlignReport:
    counts = shards.manifest.identities
    single = sum(count == 1 for count in counts.values())
    return AlignReport(photos, len(shards), len(counts), single, progress.methods, progress.rejected, seconds)
