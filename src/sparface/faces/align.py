"""Photos → faces: find the face, bring it onto a template, write a shard set."""

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

from sparface.errors import UserError
from sparface.faces.aligner import Alignment
from sparface.faces.photos import Photo, fingerprint, keys, list_photos, set_name
from sparface.faces.templates import Template
from sparface.faces.workers import aligned
from sparface.files import write_whole
from sparface.machine import usable_cores
from sparface.progress import track
from sparface.shards.format import Encoding, Face
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter

REJECTED = "rejected.csv"


@dataclass
class AlignReport:
    """What became of the photos."""

    photos: int
    """Photos looked at."""
    faces: int
    identities: int
    single: int
    """Identities with one face only. They are kept: a group of theirs repeats that face."""
    methods: dict[str, int]
    """Faces by method: `landmarks`, `box`, `center`."""
    rejected: list[tuple[str, str]] = field(repr=False)
    """Photos without a face in the set: (source, reason)."""
    seconds: float

    def __str__(self) -> str:
        methods = ", ".join(f"{count} by {name}" for name, count in sorted(self.methods.items()))
        lines = [
            f"{self.faces} faces of {self.identities} identities from {self.photos} photos"
            f" in {self.seconds:.0f} s ({methods}); {len(self.rejected)} rejected"
        ]
        if self.single:
            have = "identity has" if self.single == 1 else "identities have"
            lines.append(f"{self.single} {have} one face only: kept, a group of theirs repeats it")
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
    """Align all photos of a folder per identity, or of a CSV, into the shard set `out`.

    Faces are size by size. `already_cropped` is for sets that show little more than the face:
    their border is extended while looking for landmarks, and a photo without landmarks is
    resized as it is. Otherwise a photo without a face is left out, and so are photos that are links out of
    the folder, unless `follow_links`. Photos left out are listed in `out/rejected.csv`.

    `workers` processes align (0: one per core, at most 8); the result does not depend on
    their number. Killed at any moment, the same call goes on after the last finished shard.

    Raises UserError: no photos, no face at all (nothing is left behind), a finished set in `out`
    without `overwrite`, an unknown template.
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
        ) as writer,
    ):
        progress = _write(writer, listed, alignment, workers or min(usable_cores(), 8))
        _check_any(photos, listed, progress)
        _write_rejected(Path(out) / REJECTED, progress.rejected)
        writer.record(rejected=len(progress.rejected), methods=dict(sorted(progress.methods.items())))
    return _report(ShardSet.open(out), len(listed), progress, time.monotonic() - started)


def _provenance(photos: Path, listed: list[Photo], alignment: Alignment) -> dict[str, Any]:
    """What decides the faces."""
    return {
        "maker": "sparface align",
        "photos": {"folder": photos.name, "count": len(listed), "fingerprint": fingerprint(listed)},
        "template": alignment.template,
        "already_cropped": alignment.already_cropped,
        "on_no_face": alignment.on_no_face,
    }


@contextlib.contextmanager
def _no_empty_folder(out: Path) -> Iterator[None]:
    """Delete a folder that was made for nothing."""
    existed = out.exists()
    try:
        yield
    except UserError:
        if not existed:
            with contextlib.suppress(OSError):  # not empty: there is something to go on with
                out.rmdir()
        raise


@dataclass
class _Progress:
    """How far an alignment is; stored with every finished shard, so that a killed one goes on."""

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
        """All but the rejected photos, which are the writer's notes: there may be many."""
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
        face = Face(key, image, photo.identity, photo.source, meta)
        writer.add(face, progress.dump(), progress.rejected[noted:])
        noted = len(progress.rejected)
    return progress


def _check_any(photos: Path, listed: list[Photo], progress: _Progress) -> None:
    if not progress.methods:
        counted = _reasons(progress.rejected).most_common(3)
        reasons = "; ".join(f"{count} x {reason}" for reason, count in counted)
        raise UserError(f"{photos}: no face in any of {len(listed)} photos ({reasons}); check the folder")


def _write_rejected(path: Path, rejected: Iterable[tuple[str, str]]) -> None:
    """The photos without a face in the set, as a CSV with the columns path and reason."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "reason"), *rejected])
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))


def _report(shards: ShardSet, photos: int, progress: _Progress, seconds: float) -> AlignReport:
    counts = shards.manifest.identities
    single = sum(count == 1 for count in counts.values())
    return AlignReport(photos, len(shards), len(counts), single, progress.methods, progress.rejected, seconds)
