"""What a run came from and what came of it, one JSON object a line in RUN/lineage.jsonl: the spool of
MLflow's data sets and models, as `metrics.jsonl` is that of its metrics.

A record is of one of these kinds:

- `dataset`: the run used a shard set, for `training`, `validation` or `evaluation`
- `published`, `deleted`: a checkpoint is there, or no longer
- `measured`: figures of a checkpoint's networks, which stand in `metrics.jsonl`, too, at the same time
- `exported`: a checkpoint's recognizer waits in `exports/` to be served
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sparface.files import append_line, inside, read_bounded
from sparface.forms import COUNT, NUMBER, fits
from sparface.runs.checkpoint_files import MAX_STATE, STATE_FILE
from sparface.runs.checkpoint_folder import REPLACED, standing
from sparface.runs.record import read_lines
from sparface.shards.set import ShardSet
from sparface.text import without_login

LINEAGE_FILE = "lineage.jsonl"
Use = Literal["training", "validation", "evaluation"]
DIGEST = re.compile("[0-9a-f]{64}")
CHECKPOINT = {"name": re.compile("step-[0-9]{9,19}"), "digest": DIGEST, "images": COUNT}
DATASET = {
    "name": re.compile("[A-Za-z0-9_-]{1,64}"),
    "digest": DIGEST,
    "faces": COUNT,
    "identities": COUNT,
    "source": re.compile(".{0,4096}"),
}
KINDS: dict[str, dict[str, Any]] = {
    "dataset": {"dataset": DATASET, "use": re.compile("training|validation|evaluation")},
    "published": {"checkpoint": CHECKPOINT},
    "deleted": {"checkpoint": CHECKPOINT},
    "measured": {"checkpoint": CHECKPOINT, "dataset": DATASET, "metrics": {str: NUMBER}},
    "exported": {"checkpoint": CHECKPOINT},
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by name and content: the same step may be written again, with other weights."""

    name: str
    digest: str
    """SHA-256 of its state.json, which has the digests of its other files."""
    images: int

    @classmethod
    def at(cls, path: Path) -> Checkpoint:
        """Raises `UserError` or `OSError` when there is none."""
        digest = hashlib.sha256(read_bounded(path / STATE_FILE, MAX_STATE)).hexdigest()
        name = path.name.removeprefix(REPLACED)  # one that was being replaced when its run was killed
        return cls(name, digest, int(name.rpartition("-")[2]))


@dataclass(frozen=True)
class Dataset:
    """A shard set as a run used it."""

    name: str
    digest: str
    """SHA-256 of its manifest."""
    faces: int
    identities: int
    source: str
    """Folder, or URL without a login."""

    @classmethod
    def of(cls, shards: ShardSet) -> Dataset:
        source = shards.remote.url if shards.remote else str(shards.folder.resolve())
        return cls(
            shards.manifest.name, shards.digest, len(shards), len(shards.identities), without_login(source)
        )


def exported_file(checkpoint: Checkpoint) -> str:
    """Where a checkpoint's recognizer waits, within the run's folder: an ONNX file that takes pictures."""
    return f"exports/{checkpoint.name}-{checkpoint.digest[:16]}.onnx"


class Lineage:
    """Adds to a run's lineage; for the process that trains it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._used: set[tuple[Dataset, str]] = set()
        self._there: dict[str, Checkpoint] = {}
        for record in read_lineage(folder):
            self._count(record)

    def used(self, dataset: Dataset, use: Use) -> None:
        """Note a data set, unless it is noted."""
        with self._lock:
            if (dataset, use) not in self._used:
                self._append(dataset_record(dataset, use))

    def look(self) -> list[Checkpoint]:
        """Note which checkpoints were published and deleted since the last look; the published ones.

        By looking at the folder: whatever published or deleted a checkpoint, and was perhaps killed right
        after, nothing is missed, and nothing is noted twice.
        """
        with self._lock:
            there = {path.name: Checkpoint.at(path) for path in standing(self._folder / "checkpoints")}
            known, now = set(self._there.values()), set(there.values())
            for checkpoint in sorted(known - now, key=lambda one: one.images):
                self._append({"kind": "deleted", "checkpoint": asdict(checkpoint)})
            new = sorted(now - known, key=lambda one: one.images)
            for checkpoint in new:
                self._append({"kind": "published", "checkpoint": asdict(checkpoint)})
            return new

    def _append(self, record: dict[str, Any]) -> None:
        append(self._folder, record)
        self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        if record["kind"] == "dataset":
            self._used.add((Dataset(**record["dataset"]), record["use"]))
        elif record["kind"] == "published":
            self._there[record["checkpoint"]["name"]] = Checkpoint(**record["checkpoint"])
        elif record["kind"] == "deleted":
            self._there.pop(record["checkpoint"]["name"], None)


def append(folder: Path, record: dict[str, Any]) -> None:
    """Add a record. It gets the present time unless it has one."""
    append_line(inside(folder, LINEAGE_FILE), json.dumps({"time": time.time(), **record}))


def dataset_record(dataset: Dataset, use: Use) -> dict[str, Any]:
    return {"kind": "dataset", "dataset": asdict(dataset), "use": use}


def measured_record(
    checkpoint: Checkpoint, dataset: Dataset, metrics: dict[str, float], time: float
) -> dict[str, Any]:
    """Figures that stand in the metrics at `time`. MLflow would make 0 of one that is not finite, so those
    are left out."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return {
        "kind": "measured",
        "checkpoint": asdict(checkpoint),
        "dataset": asdict(dataset),
        "metrics": finite,
        "time": time,
    }


def exported_record(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"kind": "exported", "checkpoint": asdict(checkpoint)}


def read_lineage(folder: Path) -> Iterator[dict[str, Any]]:
    """The sound records of a run, in order."""
    for line in read_lines(folder, LINEAGE_FILE):
        if (record := parse_lineage(line)) is not None:
            yield record


def parse_lineage(line: bytes) -> dict[str, Any] | None:
    """A line of the lineage, with the fields of its kind alone; None when it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not fits(record, {"kind": str, "time": NUMBER}) or not math.isfinite(record["time"]):
        return None
    form = KINDS.get(record["kind"])
    if form is None or not fits(record, form):
        return None
    known = {"kind": record["kind"], "time": record["time"]}
    return known | {name: _only(record[name], own) for name, own in form.items()}


def _only(value: Any, form: Any) -> Any:
    """Without the fields that a form does not name."""
    if isinstance(form, dict) and str not in form:
        return {name: value[name] for name in form}
    return value
