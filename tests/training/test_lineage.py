"""What is noted of data sets and checkpoints, without a server that takes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import save_now

from sparface.config import Config, TrackingConfig
from sparface.evaluation.verification import evaluate_verification
from sparface.faces import draw_set
from sparface.runs.checkpoint import CheckpointStore
from sparface.runs.lineage import Checkpoint, Lineage, measured_record, parse_lineage, read_lineage
from sparface.runs.tracking import Tracker
from sparface.shards import ShardSet
from sparface.training.loop import train

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def told(run: Path) -> list[tuple[Any, ...]]:
    """The lineage in short."""
    return [
        (record["kind"], record.get("use") or record["checkpoint"]["name"]) for record in read_lineage(run)
    ]


def test_each_checkpoint_is_noted_once_whoever_published_or_deleted_it(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    store = CheckpointStore(tmp_path / "checkpoints", keep=2, on_publish=lambda: None)
    for images in (1, 2):
        save_now(store, images)
    assert [checkpoint.images for checkpoint in lineage.look()] == [1, 2]
    again = Lineage(tmp_path)  # as after a kill
    assert again.look() == []
    save_now(store, 3)
    store.discard(store.folder / "step-000000002")
    again.look()
    first = Checkpoint.at(store.folder / "step-000000003")
    store.save(3, {"other": 1.0}, {}, identity="model")  # the same place, with other weights
    store.finish()
    (replaced,) = again.look()
    assert (replaced.name, replaced.digest != first.digest) == ("step-000000003", True)
    assert told(tmp_path)[2:] == [
        ("deleted", "step-000000001"),
        ("deleted", "step-000000002"),
        ("published", "step-000000003"),
        ("deleted", "step-000000003"),
        ("published", "step-000000003"),
    ]


def test_a_training_and_an_evaluation_note_what_they_use_and_publish(
    tiny: Callable[..., Config], faces: Path, tmp_path: Path
) -> None:
    others, run = tmp_path / "others", tmp_path / "run"
    draw_set(others, 6, 6, size=32, seed=1)
    options = ["--tracking.enabled=true", f"--validation.shards={others}", "--validation.pairs=10"]
    options += ["--validation.every=32", "--training.checkpoint_every=16", "--schedule.images=64"]
    train(tiny(*options), run)
    evaluate_verification(run, shards=others)
    assert Counter(told(run)) == Counter(
        [("dataset", use) for use in ("training", "validation", "evaluation")]
        + [("published", f"step-{images:09d}") for images in (16, 32, 48, 64)]
        + [("deleted", f"step-{images:09d}") for images in (16, 32)]
        + [("measured", f"step-{images:09d}") for images in (32, 64, 64)]
    )
    records = list(read_lineage(run))
    assert records[0]["dataset"] == {
        "name": "faces", "digest": ShardSet.open(faces).digest, "faces": 72, "identities": 12,
        "source": str(faces),
    }  # fmt: skip
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "measured":
            (same,) = (line for line in metrics if line["time"] == record["time"])
            assert record["metrics"].items() <= same.items()
            assert same["images"] == record["checkpoint"]["images"]
    assert records[-1]["checkpoint"]["digest"] == records[-3]["checkpoint"]["digest"]


def test_figures_of_other_networks_are_not_a_checkpoint_s(faces: Path, tmp_path: Path) -> None:
    """After a rollback, the record keeps what it has of the images that are repeated."""
    shards = ShardSet.open(faces)
    tracker = Tracker(tmp_path, TrackingConfig(), params={})
    tracker.validated(4, {"accuracy": 0.75, "auc": float("nan")}, shards)
    tracker.validated(8, {"accuracy": 0.25}, shards)
    tracker.validated(8, {"accuracy": 0.5}, shards)
    store = CheckpointStore(tmp_path / "checkpoints", on_publish=tracker.look_at_checkpoints)
    for images in (4, 8):
        save_now(store, images)
    tracker.close(timeout=0)
    resumed = Tracker(tmp_path, TrackingConfig(), params={})
    resumed.validated(8, {"accuracy": 0.25}, shards)  # the very same networks again
    store.discard(store.folder / "step-000000008")
    resumed.look_at_checkpoints()
    save_now(store, 8)
    resumed.look_at_checkpoints()
    resumed.close(timeout=0)
    measured = [record for record in read_lineage(tmp_path) if record["kind"] == "measured"]
    assert [(r["checkpoint"]["name"], r["metrics"]) for r in measured] == [
        ("step-000000004", {"validation/accuracy": 0.75}),
        ("step-000000008", {"validation/accuracy": 0.25}),
    ]


def test_without_tracking_nothing_is_noted(faces: Path, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(enabled=False), params={})
    tracker.used(ShardSet.open(faces), "training")
    tracker.validated(4, {"accuracy": 0.75}, ShardSet.open(faces))
    tracker.look_at_checkpoints()
    assert not (tmp_path / "lineage.jsonl").exists()


CHECKPOINT = {"name": "step-000000001", "digest": "0" * 64, "images": 1}
SOUND = {"kind": "published", "time": 1.5, "checkpoint": CHECKPOINT}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "executed"},
        {"kind": None},
        {"time": float("nan")},
        {"checkpoint": None},
        {"checkpoint": {**CHECKPOINT, "name": "../step-000000001"}},
        {"checkpoint": {**CHECKPOINT, "digest": "0' OR '1' = '1"}},
        {"checkpoint": {**CHECKPOINT, "images": -1}},
        {"kind": "measured", "dataset": {"name": "x" * 1000}, "metrics": {}},
    ],
)
def test_a_damaged_record_is_left_out(change: dict[str, Any]) -> None:
    assert parse_lineage(json.dumps(SOUND | {"more": 1}).encode()) == SOUND
    assert parse_lineage(json.dumps(SOUND | change).encode()) is None
    assert parse_lineage(b"[" * 100_000) is None


def test_figures_that_are_not_finite_are_left_out() -> None:
    from sparface.runs.lineage import Dataset

    checkpoint, dataset = Checkpoint("step-000000001", "0" * 64, 1), Dataset("a", "0" * 64, 2, 1, "a")
    assert measured_record(checkpoint, dataset, {"a": 1.0, "b": float("nan")}, 0)["metrics"] == {"a": 1.0}
