"""A run's record on disk, whatever becomes of MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparface.config import TrackingConfig
from sparface.runs.record import read_metrics
from sparface.runs.tracking import Tracker, tracking_uri


def test_the_uri_is_the_variable_or_the_configured_or_beside_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(run) == f"sqlite:///{run.parent}/mlflow.db"
    assert tracking_uri(run, "http://a") == "http://a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://b")
    assert tracking_uri(run, "http://a") == "http://b"


def test_a_torn_last_line_is_left_out_and_ended(run: Path) -> None:
    lines = ['{"images": 1, "time": 0, "loss": 1.5}', '{"images": 2, "time": 0, "loss": NaN}']
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"images": 3, "ti']))
    assert [record["images"] for record in read_metrics(run)] == [1, 2]
    tracker = Tracker(run, TrackingConfig(enabled=False), params={})
    tracker.log(2, {"loss": 1.0})
    tracker.log(2, {"accuracy": 1.0})
    tracker.log(3, {"loss": 1.0})
    tracker.close()
    assert [(r["images"], r.get("loss"), r.get("accuracy")) for r in read_metrics(run)][2:] == [
        (2, None, 1.0),
        (3, 1.0, None),
    ]
    assert tracker.run_id is None
    assert not (run / "tracking.json").exists()


DAMAGED = (
    '{"images"}',
    "[]",
    "7",
    "null",
    '{"images": "1", "time": 0}',
    '{"images": 1}',
    '{"images": 1, "time": 0, "a": "b"}',
)


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_named_and_left_out(line: str, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_metrics(run) == []
    (run / "metrics.jsonl").write_text(f'{{"images": 1, "time": 0}}\n{line}\n{{"images": 3, "time": 0}}\n')
    assert [record["images"] for record in read_metrics(run)] == [1, 3]
    assert "metrics.jsonl: line 2 is damaged" in caplog.text


def test_pictures_and_events_are_files(run: Path) -> None:
    tracker = Tracker(run, TrackingConfig(enabled=False), params={})
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    tracker.picture(12_800, "masks", picture)
    assert (np.asarray(Image.open(run / "previews/000012800-masks.png")) == picture).all()
    tracker.event(5, "collapse", "embeddings collapse", policy="log")
    event = json.loads((run / "events.jsonl").read_text())
    assert (event["images"], event["kind"], event["policy"]) == (5, "collapse", "log")


def test_other_ranks_do_nothing(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", TrackingConfig(), params={}, active=False)
    tracker.log(1, {"loss": 1.0})
    tracker.event(1, "a", "b")
    tracker.picture(1, "a", np.zeros((2, 2, 3), np.uint8))
    tracker.artifact(tmp_path)
    tracker.close()
    assert tracker.run_id is None
    assert not (tmp_path / "run").exists()
