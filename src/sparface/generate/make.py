"""The pipeline of one process: read → generate → judge → encode → tar, all concurrently.

While the device works on a batch, threads encode earlier batches and another thread writes the tar of the
previous unit. Every queue is bounded, so at most two units are in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType

import torch
from torch import Tensor

from sparface.errors import UserError
from sparface.generate.filters import REASONS, verdicts
from sparface.generate.folder import MadeFolder, Record
from sparface.generate.variants import ORIGINALS_STREAM, Block, Judge, Made, Maker, Variant
from sparface.randomness import uniform
from sparface.shards.codec import encode
from sparface.shards.format import MAX_KEY, Face, sidecar
from sparface.shards.labels import count, labels_of
from sparface.shards.writer import OpenShard
from sparface.training.stop import StopRequest

MAX_WORKERS = 8


class Stopped(Exception):
    """A signal asked this process to stop; the current unit is dropped."""


@dataclass(frozen=True)
class Drawn:
    """A drawn variant: an encoded image, or the reason why it was rejected."""

    variant: Variant
    image: bytes
    strength: float
    target: str | None
    rejected: str = ""


Deliver = Callable[[int, memoryview, Record], None]
"""Called with a finished unit: its number, tar and record."""


class Pipeline:
    """Makes units; use it as a context manager. `workers` is the number of encoding threads."""

    def __init__(
        self, maker: Maker, judge: Judge | None, folder: MadeFolder, *, workers: int, stop: StopRequest
    ) -> None:
        self._maker, self._judge, self._folder, self._stop = maker, judge, folder, stop
        self._settings, self._sources = maker.settings, maker.sources
        self._layout, self._about = folder.layout, folder.provenance
        self._open = ExitStack()
        self._encoders = self._open.enter_context(ThreadPoolExecutor(workers))
        self._closer = self._open.enter_context(ThreadPoolExecutor(1))
        self._reader = self._open.enter_context(ThreadPoolExecutor(1))
        self._room = threading.Semaphore(workers + 2)
        self._reading: dict[int, Future[list[Face]]] = {}
        self._block: tuple[int, Block] | None = None

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def run(self, units: Iterable[int], deliver: Deliver) -> Iterator[int]:
        """Make units in order; yields each one after delivery. Raises `Stopped` or `UserError`.

        A unit that is completely drawn is delivered even if the next one fails or is stopped.
        """
        closing: Future[int] | None = None
        for unit, following in pairwise([*units, -1]):
            block = self._load(self._layout.block_of(unit))
            if following >= 0:
                self._read(self._layout.block_of(following))
            drawn = self._draw(block, self._layout.variants(unit))
            if closing is not None:
                yield closing.result()
            closing = self._closer.submit(self._close, unit, block, drawn, deliver)
        if closing is not None:
            yield closing.result()

    # Reading.

    def _read(self, block: int) -> None:
        """Start reading a block's faces, unless they are loaded or being read."""
        if block not in self._reading and (self._block is None or self._block[0] != block):
            places = self._layout.block(block)
            self._reading[block] = self._reader.submit(
                lambda: [face for _, face in self._sources.faces_at(places)]
            )

    def _load(self, number: int) -> Block:
        if self._block is None or self._block[0] != number:
            self._read(number)
            faces = self._reading.pop(number).result()
            self._block = None  # one block in memory at a time
            self._block = number, self._maker.block(self._layout.block(number), faces, self._judge)
        return self._block[1]

    # Drawing.

    def _draw(self, block: Block, numbers: range) -> list[Future[list[Drawn]]]:
        """Draw every variant of a unit, and draw rejected ones again."""
        futures: list[Future[list[Drawn]]] = []
        pending = [Variant(row, number) for row in range(len(block.faces)) for number in numbers]
        for _ in range(self._settings.filter.attempts):
            size = self._settings.batch_size
            latest = [self._batch(block, pending[i : i + size]) for i in range(0, len(pending), size)]
            futures += latest
            if not self._settings.filtered:
                break  # nothing to wait for
            rejected = [one.variant for future in latest for one in future.result() if one.rejected]
            pending = [dataclasses.replace(variant, attempt=variant.attempt + 1) for variant in rejected]
        return futures

    def _batch(self, block: Block, drawn: Sequence[Variant]) -> Future[list[Drawn]]:
        if self._stop.requested:
            raise Stopped
        self._room.acquire()
        # always a full batch, as the bits of a float result depend on its shape
        full = [*drawn, *[drawn[-1]] * (self._settings.batch_size - len(drawn))]
        made = self._maker.make(block, full)
        verdict = self._verdict(block, full, made)
        future = self._encoders.submit(self._encode, drawn, made, verdict)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def _verdict(self, block: Block, drawn: Sequence[Variant], made: Made) -> Tensor:
        """Return int64 [B] as `verdicts` does."""
        if not self._settings.filtered:
            return torch.zeros(len(drawn), dtype=torch.int64)
        cosine = None
        if self._judge is not None:
            cosine = self._maker.cosine_to_source(self._judge, block, drawn, made)
        return verdicts(self._settings.filter, cosine, self._maker.change(block, drawn, made), made.mask)

    def _encode(self, drawn: Sequence[Variant], made: Made, verdict: Tensor) -> list[Drawn]:
        """In a thread: fetch a batch from the device and encode the accepted variants."""
        images, encoding, quality = made.images.cpu().numpy(), self._settings.encoding, self._settings.quality
        reasons = ["" if code == 0 else REASONS[code - 1] for code in verdict.tolist()]
        strengths = made.strength.tolist()
        return [
            Drawn(
                variant,
                b"" if reasons[i] else encode(images[i], encoding, quality),
                round(strengths[i], 6),
                made.target[i],
                reasons[i],
            )
            for i, variant in enumerate(drawn)
        ]

    # Closing.

    def _close(
        self, unit: int, block: Block, futures: Sequence[Future[list[Drawn]]], deliver: Deliver
    ) -> int:
        """In a thread: assemble the tar of a unit and deliver it."""
        drawn = [one for future in futures for one in future.result()]
        kept = [one for one in drawn if not one.rejected]
        rejected = Counter(one.rejected for one in drawn if one.rejected)
        if not kept:
            self._refuse(unit, rejected)
        originals = self._originals(unit, block)
        given_up = self._layout.samples(unit) - len(kept)
        counts = {"made": len(kept), "originals": len(originals), "given_up": given_up, **rejected}
        shard = OpenShard(self._settings.encoding)
        for one in sorted(kept + originals, key=lambda one: (one.variant.row, one.variant.number)):
            self._add(shard, block, one)
        metas = (block.faces[one.variant.row].meta for one in kept + originals)
        classes = count(metas, self._sources.manifest.labels)
        data, info = shard.close(self._folder.shard_file(unit))
        deliver(unit, data, Record(info, counts, classes))
        return unit

    def _originals(self, unit: int, block: Block) -> list[Drawn]:
        """Return the share of a block's faces to include as originals, in the block's first unit."""
        if self._layout.variants(unit).start > 1 or self._settings.originals == 0:
            return []
        variants = [Variant(row, 0) for row in range(len(block.faces))]
        positions = self._maker.positions(block, variants)
        chosen = uniform(self._settings.seed, positions, 1, ORIGINALS_STREAM)[:, 0] < self._settings.originals
        encoding, quality = self._settings.encoding, self._settings.quality
        return [
            Drawn(variants[row], encode(block.faces[row].image, encoding, quality), 0.0, None)
            for row in chosen.nonzero()[:, 0].tolist()
        ]

    def _add(self, shard: OpenShard, block: Block, one: Drawn) -> None:
        source, number = block.faces[one.variant.row], one.variant.number
        label = self._maker.label(block.places[one.variant.row])
        made = {
            "maker": self._about["maker"],
            "seed": self._settings.seed,
            "strength": one.strength,
            "target": one.target,
            "attempt": one.variant.attempt,
        }
        labels = labels_of(source.meta, self._sources.manifest.labels)
        meta = {**(made | labels if number else source.meta), "parent": source.key}
        meta |= {"variant": number, "synthetic": number > 0}
        face = Face(variant_key(source.key, number), source.image, source.identity, source.source, meta)
        shard.add(face.key, one.image, sidecar(face, label), label)

    def _refuse(self, unit: int, counts: Counter[str]) -> None:
        reason = counts.most_common(1)[0][0]
        raise UserError(
            f"{self._folder.folder}: all {self._layout.samples(unit)} variants of shard "
            f"{self._folder.shard_file(unit)} were rejected, mostly as {reason}; relax --filter"
        )


def variant_key(parent: str, number: int) -> str:
    """Return the key of a variant; a parent key that is too long is replaced by its digest."""
    suffix = f"-v{number:03d}"
    if len(parent) + len(suffix) > MAX_KEY:
        parent = hashlib.sha256(parent.encode()).hexdigest()
    return parent + suffix
