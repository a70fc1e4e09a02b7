"""The lineage of a run: data sets used and checkpoints made, one JSON object per line of RUN/lineage.jsonl.

It is the spool of MLflow's data sets and models, as `metrics.jsonl` is the spool of its metrics.

Kinds of records:

- `dataset`: the run used a shard set, for `training`, `validation` or `evaluation`
- `published`, `deleted`: a checkpoint was published or deleted
- `measured`: metrics of a checkpoint's networks, also in `metrics.jsonl` with the same time
- `exported`: an ONNX file of a checkpoint's recognizer is in `exports/`, ready to be sent
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
from sparface.forms import COUNT, NUMBER, fits, parsed
from sparface.runs.checkpoint_files import MAX_STATE, STATE_FILE
from sparface.runs.checkpoint_folder import REPLACED, standing
from sparface.runs.record import is_time, read_lines
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
    """A checkpoint by name and content: the same step may be written again with other weights."""

    name: str
    digest: str
    """SHA-256 of its state.json, which lists the digests of its other files."""
    images: int

    @classmethod
    def at(cls, path: Path) -> Checkpoint:
        """Identify the checkpoint at `path`. Raises `UserError` or `OSError` if there is none."""
        digest = hashlib.sha256(read_bounded(path / STATE_FILE, MAX_STATE)).hexdigest()
        name = path.name.removeprefix(REPLACED)  # it was being replaced when its run was killed
        return cls(name, digest, int(name.rpartition("-")[2]))


@dataclass(frozen=True)
class Dataset:
    """A shard set used by a run."""

    name: str
    digest: str
    """SHA-256 of its manifest."""
    faces: int
    identities: int
    source: str
    """Folder, or URL without login."""

    @classmethod
    def of(cls, shards: ShardSet) -> Dataset:
        source = shards.remote.url if shards.remote else str(shards.folder.resolve())
        return cls(
            shards.manifest.name, shards.digest, len(shards), len(shards.identities), without_login(source)
        )


def exported_file(checkpoint: Checkpoint) -> str:
    """Path of a checkpoint's exported recognizer in the run's folder: an ONNX file that takes pictures."""
    return f"exports/{checkpoint.name}-{checkpoint.digest[:16]}.onnx"


class Lineage:
    """Appends to a run's lineage; used by the training process."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._used: set[tuple[Dataset, str]] = set()
        self._there: dict[str, Checkpoint] = {}
        for record in read_lineage(folder):
            self._count(record)

    def used(self, dataset: Dataset, use: Use) -> None:
        """Record a data set, unless it is recorded already."""
        with self._lock:
            if (dataset, use) not in self._used:
                self._append(dataset_record(dataset, use))

    def look(self) -> list[Checkpoint]:
        """Record checkpoints published and deleted since the last call; return those published.

        It compares the folder with the records, so nothing is missed or recorded twice, even if a
        process was killed right after publishing or deleting a checkpoint.
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
    """Append a record, with the current time unless it has one."""
    append_line(inside(folder, LINEAGE_FILE), json.dumps({"time": time.time(), **record}))


def dataset_record(dataset: Dataset, use: Use) -> dict[str, Any]:
    return {"kind": "dataset", "dataset": asdict(dataset), "use": use}


def measured_record(
    checkpoint: Checkpoint, dataset: Dataset, metrics: dict[str, float], time: float
) -> dict[str, Any]:
    """A record of metrics that are in `metrics.jsonl` at `time`. Values that are not finite are omitted,
    since MLflow would turn them into 0."""
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
    """Read the undamaged records of a run, in order."""
    for line in read_lines(folder, LINEAGE_FILE):
        if (record := parse_lineage(line)) is not None:
            yield record


def parse_lineage(line: bytes) -> dict[str, Any] | None:
    """Parse a line of the lineage, keeping only the fields of its kind; None if it is damaged."""
    record = parsed(line)
    if not fits(record, {"kind": str, "time": NUMBER}) or not is_time(record["time"]):
        return None
    form = KINDS.get(record["kind"])
    if form is None or not fits(record, form):
        return None
    known = {"kind": record["kind"], "time": record["time"]}
    return known | {name: _only(record[name], own) for name, own in form.items()}


def _only(value: Any, form: Any) -> Any:
    """Drop the fields that a form does not name."""
    if isinstance(form, dict) and str not in form:
        return {name: value[name] for name in form}
    return value
