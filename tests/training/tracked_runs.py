"""What tests of MLflow share: a tracker, what it logs, and what has arrived."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from sparface.config import TrackingConfig
from sparface.runs.lineage import Checkpoint, Dataset
from sparface.runs.tracking import Tracker

NOTHING = {"metrics.jsonl": 0, "lineage.jsonl": 0}
ACCURACY = {"evaluation/lfw/accuracy": 0.75}
CHECKPOINT = Checkpoint("step-000000002", "c" * 64, 2)
FACES = Dataset("lfw", "d" * 64, 60, 12, "shards/lfw")


def track(run: Path, uri: str, **params: Any) -> Tracker:
    return Tracker(run, TrackingConfig(uri=uri), params=params)


def log(tracker: Tracker, images: range, slowest: float = 0.5) -> None:
    """Log a loss that follows from the images seen; no call may take long."""
    for seen in images:
        start = time.monotonic()
        tracker.log(seen, {"loss": 1 / (1 + seen)})
        assert time.monotonic() - start < slowest


def arrived(uri: str, run: Path, name: str = "loss") -> list[tuple[int, float]]:
    """What MLflow has, in the order of steps, with whatever came twice."""
    run_id = json.loads((run / "tracking.json").read_text())["run_id"]
    history = MlflowClient(uri).get_metric_history(run_id, name) if run_id else []
    return sorted((metric.step, metric.value) for metric in history)


def expected(images: range) -> list[tuple[int, float]]:
    return [(seen, 1 / (1 + seen)) for seen in images]
