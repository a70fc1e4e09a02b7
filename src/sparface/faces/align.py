"""Photos → faces: find the face, bring it onto a template, write a shard set."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sparface.errors import UserError
from sparface.faces.detect import Detection, Detector, choose
from sparface.faces.photos import BadPhoto, Photo, fingerprint, keys, list_photos, open_photo, set_name
from sparface.faces.progress import track
from sparface.faces.templates import (
    BOX_MARGIN,
    Template,
    arcface_template,
    similarity,
    square_transform,
    warp,
)
from sparface.files import write_whole
from sparface.machine import keep_freed_memory, usable_cores
from sparface.shards.format import Face
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter

OnNoFace = Literal["skip", "center"]
Encoding = Literal["png", "jpg", "webp"]
Result = tuple[np.ndarray, dict[str, Any]] | str
"""A face and how it was made, or the reason why there is none."""

REJECTED = "rejected.csv"
NO_FACE = "no face found"

_CENTRE = 0.6
"""Side of the centred square of a photo without a face, share of the shorter side: what the faces
of LFW's 250-pixel photos take up on average."""
_CHUNK = 8
"""Photos per task of a worker process; those of one size are looked at together."""
_CHUNK_PIXELS = 4_000_000
"""Pixels that are looked at together: bounds memory where photos are large."""


@dataclass(frozen=True)
class Alignment:
    """How photos become faces; the same for training and test faces, or accuracy means nothing."""

    size: int = 128
    template: Template = "arcface"
    already_cropped: bool = False
    on_no_face: OnNoFace = "skip"

    def validate(self) -> None:
        """Raises UserError naming the setting."""
        if not 16 <= self.size <= 1024:
            raise UserError(f"size: {self.size} is not a face size; use 16 to 1024 pixels")
        for name, kind in (("template", Template), ("on_no_face", OnNoFace)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name}: {getattr(self, name)!r} is unknown; use one of {get_args(kind)}")


class Aligner:
    """Aligns photos in memory. Holds the detector, so make one and keep it."""

    def __init__(self, alignment: Alignment) -> None:
        alignment.validate()
        self.alignment = alignment
        self._detector = Detector()

    def align(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """A photo, uint8 [H, W, 3] RGB, as a face, uint8 [size, size, 3], and how it was made.

        The dictionary has `method` (`landmarks`, `box` or `center`) and, when a face was found,
        `box` (left, top, right, bottom), `landmarks` (five x, y), both in pixels of the upright
        photo, `score` and `found` (faces in the photo). Raises BadPhoto without a face, unless a
        centred crop is wanted instead.
        """
        return self._face(image, self._detections([image])[0])

    def align_all(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Photos of one size, as faces or the reasons why there are none."""
        results: list[Result] = []
        for image, detections in zip(images, self._detections(images), strict=True):
            try:
                results.append(self._face(image, detections))
            except BadPhoto as problem:
                results.append(str(problem))
        return results

    def _detections(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        if not self.alignment.already_cropped:
            return self._detector.detect(images)
        return self._detector.detect_cropped(images)

    def _face(self, image: np.ndarray, detections: list[Detection]) -> tuple[np.ndarray, dict[str, Any]]:
        size = self.alignment.size
        face = choose(detections, image.shape[1], image.shape[0])
        face = face.rounded() if face else None
        transform = self._transform(face) if face else None
        if face is None or transform is None:
            if self.alignment.on_no_face == "skip" and not self.alignment.already_cropped:
                raise BadPhoto(NO_FACE)
            return warp(image, self._centred(image), size), {"method": "center", "found": 0}
        meta = {
            "method": "landmarks" if self.alignment.template == "arcface" else "box",
            "box": list(face.box),
            "landmarks": face.landmarks.tolist(),
            "score": round(face.score, 6),
            "found": len(detections),
        }
        return warp(image, transform, size), meta

    def _transform(self, face: Detection) -> np.ndarray | None:
        """From photo to face coordinates; None if the landmarks are of no use."""
        size = self.alignment.size
        if self.alignment.template == "box":
            left, top, right, bottom = face.box
            side = max(face.side * (1 + BOX_MARGIN), 1.0)
            return square_transform(((left + right) / 2, (top + bottom) / 2), side, size)
        try:
            return similarity(face.landmarks, arcface_template(size))
        except ValueError:
            return None

    def _centred(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        side = max(width, height) if self.alignment.already_cropped else _CENTRE * min(width, height)
        return square_transform(((width - 1) / 2, (height - 1) / 2), side, self.alignment.size)


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
    on_no_face: OnNoFace = "skip",
    encoding: Encoding = "png",
    overwrite: bool = False,
    follow_links: bool = False,
) -> AlignReport:
    """Align all photos of a folder per identity, or of a CSV, into the shard set `out`.

    Faces are size by size. `already_cropped` is for sets that show little more than the face:
    their border is extended while looking for landmarks, and a photo without landmarks is
    resized as it is. For others `on_no_face` says what happens to a photo without a face: it is
    left out, or its centre is cropped. Photos that are links out of the folder are left out, too,
    unless `follow_links`. Photos left out are listed in `out/rejected.csv`.

    `workers` processes align (0: one per core, at most 8); the result does not depend on
    their number. Killed at any moment, the same call goes on after the last finished shard.

    Raises UserError: no photos, no face at all (nothing is left behind), a finished set in `out`
    without `overwrite`, an unknown template.
    """
    started = time.monotonic()
    alignment = Alignment(size, template, already_cropped, on_no_face)
    alignment.validate()
    listed = list_photos(Path(photos), follow_links=follow_links)
    existed = Path(out).exists()
    provenance = {
        "maker": "sparface align",
        "photos": {"folder": Path(photos).name, "count": len(listed), "fingerprint": fingerprint(listed)},
        "template": template,
        "already_cropped": already_cropped,
        "on_no_face": on_no_face,
    }
    try:
        with ShardSetWriter(
            out,
            name=set_name(Path(out)),
            size=(size, size),
            encoding=encoding,
            provenance=provenance,
            overwrite=overwrite,
            companions=[REJECTED],
        ) as writer:
            progress = _write(writer, listed, alignment, workers or min(usable_cores(), 8))
            _check_any(photos, listed, progress)
            write_rejected(Path(out) / REJECTED, progress.rejected)
            writer.record(rejected=len(progress.rejected), methods=dict(sorted(progress.methods.items())))
    except UserError:
        if not existed:
            with contextlib.suppress(OSError):  # not empty: there is something to go on with
                Path(out).rmdir()
        raise
    return _report(ShardSet.open(out), len(listed), progress, time.monotonic() - started)


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


def write_rejected(path: Path, rejected: Iterable[tuple[str, str]]) -> None:
    """The photos without a face in the set, as a CSV with the columns path and reason."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "reason"), *rejected])
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))


def _report(shards: ShardSet, photos: int, progress: _Progress, seconds: float) -> AlignReport:
    counts = shards.manifest.identities
    single = sum(count == 1 for count in counts.values())
    return AlignReport(photos, len(shards), len(counts), single, progress.methods, progress.rejected, seconds)


# Several processes, results in the order of the photos.

_aligner: Aligner | None = None


def aligned(photos: list[Photo], alignment: Alignment, workers: int, done: int = 0) -> Iterator[Result]:
    """Align photos in `workers` processes, after the first `done`; results come in order.

    A result depends neither on `workers` nor on `done`: photos are looked at in the same company always.
    Memory is bounded: only a few chunks per worker are ahead of the consumer. With more than one worker
    the caller's script needs the usual `if __name__ == "__main__"` guard.
    """
    first = done // _CHUNK * _CHUNK
    chunks = [photos[start : start + _CHUNK] for start in range(first, len(photos), _CHUNK)]
    if workers <= 1 or len(chunks) <= 1:
        aligner = Aligner(alignment)
        results: Iterator[list[Result]] = (_align_chunk(aligner, chunk) for chunk in chunks)
    else:
        results = _in_order(chunks, alignment, min(workers, len(chunks)))
    return islice(chain.from_iterable(results), done - first, None)


def _in_order(chunks: list[list[Photo]], alignment: Alignment, workers: int) -> Iterator[list[Result]]:
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (alignment,))
    waiting: deque[Future[list[Result]]] = deque()
    ahead = iter(chunks)
    try:
        with _without_interrupts():  # the workers start here, and the main process stops their work
            waiting.extend(pool.submit(_work, chunk) for chunk in islice(ahead, 3 * workers))
        while waiting:
            results = waiting.popleft().result()
            waiting.extend(pool.submit(_work, chunk) for chunk in islice(ahead, 1))
            yield results
    except BrokenProcessPool:
        message = "an alignment process died (out of memory?); run again to go on, with fewer workers"
        raise RuntimeError(message) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold SIGINT back; processes that start inside never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(alignment: Alignment) -> None:
    global _aligner
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _aligner = Aligner(alignment)


def _end_with_parent() -> None:
    """A killed main process cannot stop its workers, which would wait for tasks for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(chunk: list[Photo]) -> list[Result]:
    assert _aligner is not None
    return _align_chunk(_aligner, chunk)


def _align_chunk(aligner: Aligner, chunk: list[Photo]) -> list[Result]:
    return one_thread(
        lambda: [
            result
            for batch in _batches(chunk)
            for result in ([batch] if isinstance(batch, str) else aligner.align_all(batch))
        ]
    )


def _batches(chunk: list[Photo]) -> Iterator[list[np.ndarray] | str]:
    """Neighbouring photos of one size, opened, as many as may be looked at together; or a photo's problem."""
    batch: list[np.ndarray] = []
    for photo in map(_open, chunk):
        if batch and (isinstance(photo, str) or not _fits(photo, batch)):
            yield batch
            batch = []
        if isinstance(photo, str):
            yield photo
        else:
            batch.append(photo)
    if batch:
        yield batch


def _fits(photo: np.ndarray, batch: list[np.ndarray]) -> bool:
    height, width = photo.shape[:2]
    return photo.shape == batch[0].shape and (len(batch) + 1) * height * width <= _CHUNK_PIXELS


def _open(photo: Photo) -> np.ndarray | str:
    try:
        return photo.problem or open_photo(photo.path)
    except BadPhoto as problem:
        return str(problem)


def one_thread(work: Callable[[], list[Result]]) -> list[Result]:
    """Run with one torch thread: photos are small, and another sum order would change bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)
