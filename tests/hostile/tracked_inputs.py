"""More of the table: a run that came with MLflow's database beside it, and what `sync` is to send of it.

A damaged line of the lineage is left out, so many of these are harmless (code 0). No file may arrive:
MLflow's artifacts are not among what `sync` may write here.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from breaking import Breaking, fields, json_documents, kinds, writing
from harness import Case
from inputs import made

SYNC = ["sync", "tracked/run"]
WRITES = ("tracked/mlflow.db", *(f"tracked/run/{name}" for name in ("tracking.json", "events", ".lock")))
CHECKPOINT = {"name": "step-000000100", "digest": "c" * 64, "images": 100}
DATASET = {"name": "lfw", "digest": "d" * 64, "faces": 60, "identities": 12, "source": "shards/lfw"}
RECORDS: dict[str, dict[str, Any]] = {
    "dataset": {"dataset": DATASET, "use": "training"},
    "measured": {"checkpoint": CHECKPOINT, "dataset": DATASET, "metrics": {"auc": 0.5}},
    "exported": {"checkpoint": CHECKPOINT},
}
LINEAGE, EXPORT = "tracked/run/lineage.jsonl", f"tracked/run/exports/step-000000100-{'c' * 16}.onnx"
OUTSIDE = "../../outside/secret.txt"


def write_tracked(work: Path) -> None:
    """A run that was tracked in a database beside it, and has sent all."""
    from sparface.config import TrackingConfig
    from sparface.runs.tracking import Tracker

    run = work / "tracked/run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("recipe: recognizer\n")
    tracker = Tracker(run, TrackingConfig(), params={})
    tracker.log(1, {"loss": 1.0})
    tracker.close("FINISHED", timeout=120)
    ledger = json.loads((run / "tracking.json").read_text())
    assert ledger["told"] == "FINISHED"
    (run / "tracking.json").write_text(json.dumps(ledger | {"artifacts": {}}))


def moved(work: Path) -> None:
    """The database and the ledger name the folders where they lie now, as those of a stranger may do."""
    ledger = json.loads((work / "tracked/run/tracking.json").read_text())
    here, there = str(work / "tracked"), ledger["uri"].removeprefix("sqlite:///").removesuffix("/mlflow.db")
    (work / "tracked/run/tracking.json").write_text(
        json.dumps(ledger | {"uri": f"sqlite:///{here}/mlflow.db"})
    )
    with sqlite3.connect(work / "tracked/mlflow.db") as database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (there, here))


def cases() -> Iterator[Case]:
    for name, breaking, code in [*lineages(), *exports()]:

        def settled(work: Path, breaking: Breaking = breaking) -> None:
            moved(work)
            breaking(work)

        yield Case(f"tracked run whose {name}", made(settled, SYNC), code, WRITES)


def lineages() -> Iterator[tuple[str, Breaking, int]]:
    for name, breaking in [*kinds(), *json_documents(), *lines()]:
        refused = name in ("is a link to a device", "is a link to another file", "is a link in a circle")
        code = 2 if refused or name == "is longer than a spool" else 0
        yield f"lineage {name}", lambda work, do=breaking: do(work / LINEAGE), code  # type: ignore[misc]


def lines() -> Iterator[tuple[str, Breaking]]:
    for kind, sound in RECORDS.items():
        for name, wrong in fields(sound):
            yield f"{kind} {name}", record(kind, wrong)
    for name, wrong in [*fields(CHECKPOINT), *values("name", OUTSIDE, "step-1", "step-" + "9" * 400, "a\nb")]:
        yield f"checkpoint {name}", record("published", {"checkpoint": wrong})
    for name, wrong in [*fields(DATASET), *values("source", "\x1b[2J", "\ud800", "x" * 5000, "a\nb")]:
        yield f"data set {name}", record("dataset", {"use": "training", "dataset": wrong})
    for name, metrics in METRICS.items():
        wrong = {"checkpoint": CHECKPOINT, "dataset": DATASET, "metrics": metrics}
        yield f"has {name}", record("measured", wrong)
    for time in (None, "x", -1.0, 1e300, float("nan"), float("inf"), 9e15):
        yield f"has {time} as a time", record("measured", {**RECORDS["measured"], "time": time})
    yield "has an unknown kind", record("__class__", {})
    yield "has a line of megabytes", writing(b'{"kind": "' + b"x" * 5_000_000 + b'"}\n')
    yield "has NULs", writing(bytes(100_000) + b"\n")
    yield "is longer than a spool", huge


METRICS: dict[str, dict[str, float]] = {
    "control characters as a metric": {"\x1b[2J\0\n": 1.0},
    "no name of a metric": {"": 1.0},
    "a path as a metric": {OUTSIDE: 1.0},
    "an absolute path as a metric": {"/etc/passwd": 1.0},
    "half a character as a metric": {"\ud800": 1.0},
    "a long name of a metric": {"x" * 10_000: 1.0},
    "a huge metric": {"a": 1e308},
    "a metric that is no number": {"a": float("nan")},
}


def values(field: str, *wrong: str) -> Iterator[tuple[str, dict[str, Any]]]:
    sound = DATASET if field == "source" else CHECKPOINT
    for value in wrong:
        yield f"has {value[:40]!a} as {field}", {**sound, field: value}


def record(kind: str, fields: dict[str, Any]) -> Breaking:
    return writing(json.dumps({"kind": kind, "time": 1.0, **fields}).encode() + b"\n")


def huge(path: Path) -> None:
    """Terabytes that take no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, 1 << 42)


def exports() -> Iterator[tuple[str, Breaking, int]]:
    """An export that waits to be sent. What is no file is as good as no export."""
    for name, breaking in [
        *kinds(),
        ("is huge", huge),
        ("is an ONNX file without a network", writing(b"\x08\x07\x12\x04test")),
        ("has a huge field", writing(b"\x3a\xff\xff\xff\xff\x0f")),
        ("reads a file outside", writing(network(OUTSIDE))),
        ("reads a file anywhere", writing(network("/etc/passwd"))),
    ]:
        code = 0 if name in ("is a folder", "is a FIFO", "is a dangling link") else 2
        yield f"export {name}", waiting(breaking), code
    yield "folder of exports is a link to the outside", linked, 2
    yield "exports are of a name that leaves the folder", leaving, 0


def waiting(breaking: Breaking) -> Breaking:
    def change(work: Path) -> None:
        record("exported", {"checkpoint": CHECKPOINT})(work / LINEAGE)
        breaking(work / EXPORT)

    return change


def linked(work: Path) -> None:
    record("exported", {"checkpoint": CHECKPOINT})(work / LINEAGE)
    (work / "../outside" / Path(EXPORT).name).write_text("the user's own\n")
    (work / "tracked/run/exports").symlink_to(work / "../outside")


def leaving(work: Path) -> None:
    wrong = {**CHECKPOINT, "name": "../../../outside/secret.txt"}
    record("exported", {"checkpoint": wrong})(work / LINEAGE)


def network(location: str) -> bytes:
    """A recognizer of pictures whose weights are said to be in another file."""
    from onnx import TensorProto, helper

    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("pictures", "out")]
    node = helper.make_node("Mul", ["pictures", "w"], ["out"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    return bytes(helper.make_model(graph).SerializeToString())
