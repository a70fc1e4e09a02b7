"""A run's record on disk: `metrics.jsonl` and `events.jsonl`, one JSON object per line.

The metrics file is the source for reports and the spool for MLflow. A crash may truncate the last line; the
next writer terminates it, and readers skip damaged lines with a warning.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparface.files import append_line, inside, read_bounded
from sparface.forms import COUNT, NUMBER, fits, parsed

METRICS_FILE, EVENTS_FILE = "metrics.jsonl", "events.jsonl"
MAX_BYTES = 1 << 30
"""Maximum size of a record file, some ten million lines."""
LATEST = 1e11
"""Latest time of a record, in seconds since 1970: MLflow stores milliseconds in 64 bits."""
Record = dict[str, Any]
logger = logging.getLogger(__name__)


def read_metrics(run_folder: Path) -> list[Record]:
    """Read the records of RUN/metrics.jsonl, in order; [] if the file is missing.

    Each has `images`, `time` (seconds since 1970) and its metrics, None for a value that was not finite.
    Damaged lines are skipped; a warning names the first.
    """
    records, damaged = [], []
    for number, line in enumerate(read_lines(run_folder, METRICS_FILE), 1):
        if (record := parse_record(line)) is not None:
            records.append(record)
        elif line.strip():
            damaged.append(number)
    if damaged:
        file = Path(run_folder) / METRICS_FILE
        logger.warning("%s: line %d is damaged; skipped (%d such lines)", file, damaged[0], len(damaged))
    return records


def read_lines(run_folder: Path, name: str) -> Iterator[bytes]:
    """The lines of one of the two files, including a truncated last one; none if the file is missing."""
    file = inside(Path(run_folder), name)
    if file.exists():
        yield from read_bounded(file, MAX_BYTES).splitlines()


def parse_record(line: bytes) -> Record | None:
    """Parse a line of the metrics; None if it is damaged."""
    record = parsed(line)
    if not fits(record, {"images": COUNT, "time": NUMBER}) or not is_time(record["time"]):
        return None
    return dict(record) if all(v is None or fits(v, NUMBER) for v in record.values()) else None


def is_time(seconds: float) -> bool:
    """Whether a number can be the time of a record; also False for NaN."""
    return 0 <= seconds <= LATEST


def append_metrics(run_folder: Path, images_seen: int, metrics: dict[str, float]) -> Record:
    """Append a record and return it."""
    values = {name: finite(value) for name, value in metrics.items()}
    record = {"images": images_seen, "time": time.time(), **values}
    append_line(inside(run_folder, METRICS_FILE), json.dumps(record))
    return record


def finite(value: float) -> float | None:
    """A metric as it is recorded, None if not finite: JSON has no NaN."""
    return value if math.isfinite(value) else None


def append_event(run_folder: Path, event: Record) -> None:
    """Append to RUN/events.jsonl, the chronological log of what happened."""
    append_line(inside(run_folder, EVENTS_FILE), json.dumps({"time": time.time(), **event}))
