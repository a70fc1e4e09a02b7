"""One process of `sparface generate`: make its part, and finish the set if nothing else is missing."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import sparface
from sparface.attacks.settings import AttackConfig
from sparface.errors import UserError
from sparface.evaluation.recognizers import Opened, open_recognizer
from sparface.files import sha256
from sparface.generate.attacked import open_attack
from sparface.generate.filters import REASONS
from sparface.generate.folder import MadeFolder, Record, total
from sparface.generate.layout import Layout
from sparface.generate.make import MAX_WORKERS, Pipeline, Stopped
from sparface.generate.makers import open_maker
from sparface.generate.purified import open_purify
from sparface.generate.settings import GenerateConfig, PurifyConfig, StorageConfig
from sparface.generate.variants import Judge, Maker
from sparface.machine import cores_per_process, keep_freed_memory
from sparface.progress import track
from sparface.runs.trained import open_run
from sparface.shards.manifest import ShardInfo
from sparface.shards.set import ShardSet
from sparface.training.stop import StopRequest, stop_requests


@dataclass(frozen=True)
class Job:
    """What one process needs to make its part."""

    maker: Maker
    judge: Judge | None
    """Used by the cosine filter, if set, and by the report. None if there is none."""
    judge_digest: str | None
    folder: MadeFolder
    part: range
    """The units of this process."""

    @property
    def filter_judge(self) -> Judge | None:
        """The judge if a filter needs it, else None."""
        return None if self.maker.settings.filter.cosine is None else self.judge


def generate(job: Job, *, workers: int = 0) -> bool:
    """Make this process's part of the set and, if nothing else is missing, the manifest and report.

    `workers` is the number of encoding threads; 0 means one per core. Returns whether the part is done; if a
    signal stopped it, call again to resume. Raises `UserError`.
    """
    if not _make(job, workers):
        return False
    _finish(job)
    return True


def open_job(
    checkpoint: Path,
    shards: Path,
    out: Path,
    settings: GenerateConfig,
    *,
    judge: Path | None = None,
    part: str = "0/1",
) -> Job:
    """Load the networks and claim the folder.

    `judge` is a recognizer (see `open_recognizer`); by default the run itself, if it has one. `part` is
    "I/N", with I from 0, and is divided further among the processes of torchrun. Raises `UserError`, also for
    inputs needed only at the end.
    """
    index, count = share(part)
    keep_freed_memory()
    device = _device()
    trained, sources = open_run(checkpoint), ShardSet.open(shards)
    sources.require_size(trained.config.size)
    if settings.targeted > 0 and len(sources.identities) < 2:
        raise UserError(f"--targeted: {shards} has only one identity; use a set with two or more")
    maker = open_maker(trained, sources, settings, device)
    judging = None
    if judge is not None or "recognizer" in trained.recipe.roles(trained.config):
        judging = open_recognizer(checkpoint if judge is None else judge, device)
    elif settings.filter.cosine is not None:
        raise UserError(f"--filter.cosine: {checkpoint} has no recognizer; give one with --judge")
    return _job(maker, judging, Path(out), index, count)


def open_attack_job(
    checkpoint: Path,
    shards: Path,
    out: Path,
    settings: AttackConfig,
    storage: StorageConfig,
    *,
    generator: Path | None = None,
    part: str = "0/1",
) -> Job:
    """Like `open_job`, for the faces of a set as an attack leaves them (see `open_attack`)."""
    index, count = share(part)
    keep_freed_memory()
    maker, attacked = open_attack(
        checkpoint, shards, settings, storage, generator=generator, device=_device()
    )
    return _job(maker, attacked, Path(out), index, count)


def open_purify_job(
    checkpoint: str, shards: Path, out: Path, storage: PurifyConfig, *, part: str = "0/1"
) -> Job:
    """Like `open_job`, for the faces of a set as a purifier leaves them (see `open_purify`)."""
    index, count = share(part)
    keep_freed_memory()
    return _job(open_purify(checkpoint, shards, storage, _device()), None, Path(out), index, count)


def _job(maker: Maker, judging: Opened | None, out: Path, index: int, count: int) -> Job:
    """Claim the folder."""
    judge, digest = (judging.network.requires_grad_(False), judging.digest) if judging else (None, None)
    versions = f"{sparface.__version__}, torch {torch.__version__}, {maker.device.type}"
    settings = maker.settings
    provenance = {
        "by": f"sparface {maker.verb} {versions}",
        "sources": maker.sources.digest,
        **maker.provenance,
        "judge": None if settings.filter.cosine is None else digest,
        "settings": maker.described(),
    }
    layout = Layout(len(maker.sources), settings.factor, settings.shard_samples)
    folder = MadeFolder(out, layout, provenance, settings.encoding)
    return Job(maker, judge, digest, folder, layout.part(index, count))


def share(part: str) -> tuple[int, int]:
    """Return (index, count) of this process among the processes of all parts. Raises `UserError`."""
    index, _, count = part.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--part: {part} is not allowed; give I/N with I from 0 to N - 1, for example 0/4")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return int(index) * world + rank, int(count) * world


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.deterministic = True
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _workers(asked: int) -> int:
    return asked or min(cores_per_process(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), MAX_WORKERS)


# Making.


def _make(job: Job, workers: int) -> bool:
    """Make the missing units of the part; returns False if a signal stopped it."""
    missing = [unit for unit in job.part if job.folder.record(unit) is None]
    if not missing:
        return True
    started = time.monotonic()
    with (
        stop_requests() as stop,
        Pipeline(job.maker, job.filter_judge, job.folder, workers=_workers(workers), stop=stop) as pipeline,
    ):
        try:
            for _ in _tracked(job.folder, pipeline.run(missing, job.folder.store)):
                pass
        except Stopped:
            print(f"stopped by {stop.reason}; run the same command to resume", file=sys.stderr)
            return False
    _say(job.folder, missing, time.monotonic() - started)
    return True


def _tracked(folder: MadeFolder, done: Iterator[int]) -> Iterator[int]:
    """Show the progress of the whole set after each unit of this process.

    Units of other processes are counted on disk, which takes at most a hundredth of the time, however many
    there are and however slow the disk.
    """
    layout, seen = folder.layout, folder.finished()
    before = sum(map(layout.samples, seen))
    mine: list[Record] = []

    def faces() -> Iterator[int]:
        look_again = 0.0
        for unit in done:
            new = {unit}
            if (now := time.monotonic()) >= look_again:
                new |= folder.finished()
                look_again = now + 100 * (time.monotonic() - now)
            new -= seen
            seen.update(new)
            mine.extend(record for record in [folder.record(unit)] if record)
            yield sum(map(layout.samples, new))

    whole = layout.sources * layout.factor
    note = lambda: f"{_accepted(mine):.1%} accepted"  # noqa: E731
    return track(faces(), total=whole, done=before, unit="faces", size=int, note=note)


def _say(folder: MadeFolder, units: list[int], seconds: float) -> None:
    records = [record for unit in units if (record := folder.record(unit))]
    faces = sum(record.shard.samples for record in records)
    print(f"made {faces:,} faces in {len(records)} shards, {faces / seconds:,.1f} faces/s")
    print(acceptance(records))


def acceptance(records: list[Record]) -> str:
    """Summarise in one line how many draws were accepted, and why the others were rejected."""
    counts = total(records)
    rejected = {reason: counts[reason] for reason in REASONS if counts[reason]}
    why = "".join(f", {count:,} {reason.replace('_', ' ')}" for reason, count in rejected.items())
    return (
        f"{counts['made'] + sum(rejected.values()):,} draws: {_accepted(records):.1%} accepted{why}; "
        f"{counts['given_up']:,} variants given up, {counts['originals']:,} originals mixed in"
    )


def _accepted(records: list[Record]) -> float:
    """Return the share of draws that were accepted."""
    counts = total(records)
    return counts["made"] / max(1, counts["made"] + sum(counts[reason] for reason in REASONS))


# Finishing.


def finish(job: Job) -> None:
    """Write the manifest and the report. Raises `UserError` if shards are missing."""
    if not _finish(job):
        missing = [unit for unit in range(job.folder.layout.units) if job.folder.record(unit) is None]
        raise UserError(
            f"{job.folder.folder}: {len(missing)} of {job.folder.layout.units} shards are missing, "
            f"first {job.folder.shard_file(missing[0])}; run the parts that make them"
        )


def _finish(job: Job) -> bool:
    finished = job.folder.finish(job.maker.sources)
    if finished is None:
        left = job.folder.layout.units - len(job.folder.finished())
        print(f"this part is done; {left} shards of other parts are still missing")
        return False
    from sparface.generate.report import summary, write_report

    write_report(job.folder, job.maker, finished, job.judge, job.judge_digest)
    print(f"{finished.folder}: {len(finished):,} faces, digest {finished.digest}")
    print(summary(finished.folder / "report.json"))
    return True


# Verifying.


def verify(job: Job, share: float) -> int:
    """Make a random share of the finished shards again and compare their bytes; returns how many.

    Raises `UserError` naming the first shard that differs.
    """
    if not 0 < share <= 1:
        raise UserError(f"--verify: {share} is not allowed; must be above 0 and at most 1")
    finished = sorted(job.folder.finished())
    if not finished:
        raise UserError(f"{job.folder.folder}: contains no finished shard to verify; make some first")
    chosen = sorted(random.sample(finished, max(1, round(share * len(finished)))))

    def compare(unit: int, data: memoryview, again: Record) -> None:
        _compare(job.folder, unit, again.shard)

    workers, never = _workers(0), StopRequest()
    with Pipeline(job.maker, job.filter_judge, job.folder, workers=workers, stop=never) as pipeline:
        for _ in track(pipeline.run(chosen, compare), total=len(chosen), unit="shards"):
            pass
    return len(chosen)


def _compare(folder: MadeFolder, unit: int, again: ShardInfo) -> None:
    path = folder.folder / folder.shard_file(unit)
    record = folder.record(unit)
    found = sha256(path) if path.is_file() else None
    if record is None or found != record.shard.sha256:
        raise UserError(
            f"{path}: changed since it was written; delete it and run the same command without --verify"
        )
    if found != again.sha256:
        raise UserError(f"{path}: differs when made again; verify on the kind of machine that made it")
