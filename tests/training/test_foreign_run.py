"""A run folder that somebody else made: it names no server, no file outside of it and no other run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from tracked_runs import ACCURACY, CHECKPOINT, FACES, NOTHING

from listening import listening
from sparface import cli
from sparface.config import TrackingConfig
from sparface.errors import UserError
from sparface.runs import tracking
from sparface.runs.servable import write_servable
from sparface.runs.tracking import Tracker, replay


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def listener() -> Iterator[tuple[str, list[bytes]]]:
    with listening() as (address, received):
        yield address, received


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was tracked in the database beside it."""
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("recipe: recognizer\n")
    tracker = Tracker(folder, TrackingConfig(), params={})
    tracker.log(1, {"loss": 1.0})
    tracker.close("FINISHED", timeout=120)
    return folder


def alter(run: Path, **fields: Any) -> None:
    file = run / "tracking.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_nothing_is_sent_to_an_address_that_the_folder_names(
    run: Path,
    listener: tuple[str, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, received = listener
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    alter(run, uri=address, sent=NOTHING)
    tracking.add(run, 1, ACCURACY, of=CHECKPOINT, on=FACES)
    assert cli.main(["sync", str(run)]) == 2
    assert f"was tracked at {address}; set MLFLOW_TRACKING_URI" in capsys.readouterr().err
    assert received == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="nothing is lost"):
        replay(run)
    assert received  # the listener does hear what the user asks for


def outside(run: Path) -> str:
    return "../../secret.txt"


def linked(run: Path) -> str:
    (run / "previews").mkdir()
    (run / "previews" / "link.png").symlink_to(run.parent.parent / "secret.txt")
    return "previews/link.png"


def absolute(run: Path) -> str:
    return str(run.parent.parent / "secret.txt")


@pytest.mark.parametrize("name", [outside, linked, absolute])
def test_no_file_outside_of_the_folder_is_sent(name: Callable[[Path], str], run: Path) -> None:
    (run.parent.parent / "secret.txt").write_text("secret")
    alter(run, artifacts={name(run): 1})
    with pytest.raises(UserError, match=r"secret\.txt|link\.png.*outside"):
        replay(run)
    sent = [path.read_bytes() for path in run.parent.rglob("mlartifacts/**/*") if path.is_file()]
    assert sent and b"secret" not in sent


def test_another_run_of_the_user_is_not_written_to(run: Path) -> None:
    other = run.with_name("other")
    other.mkdir()
    tracker = Tracker(other, TrackingConfig(), params={})
    tracker.log(1, {"loss": 1.0})
    tracker.close("FINISHED", timeout=120)
    alter(run, run_id=tracker.run_id, sent=NOTHING)
    replay(run)
    client = MlflowClient(f"sqlite:///{run.parent}/mlflow.db")
    assert len(client.get_metric_history(str(tracker.run_id), "loss")) == 1
    assert json.loads((run / "tracking.json").read_text())["run_id"] != tracker.run_id


def test_a_database_that_came_along_sends_artifacts_nowhere(
    run: Path, listener: tuple[str, list[bytes]]
) -> None:
    import sqlite3

    address, received = listener
    with sqlite3.connect(run.parent / "mlflow.db") as database:
        database.execute("UPDATE runs SET artifact_uri = ?", (f"{address}/artifacts",))
    alter(run, artifacts={"config.yaml": 1})
    with pytest.raises(UserError, match=r"mlflow\.db: stores artifacts outside"):
        replay(run)
    assert received == []


def test_an_export_that_writes_other_files_is_sent_as_one(tmp_path: Path) -> None:
    """ONNX can keep weights in another file, anywhere: then saving the network would write there."""
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2], raw_data=b"weights!")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="elsewhere")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    (tmp_path / "export.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    model = LoggedModel("1", "m-1", "step-000000001", (tmp_path / "artifacts").as_uri(), 0, 0)
    write_servable(tmp_path / "export.onnx", tmp_path / "model", model)
    assert b"weights!" in (tmp_path / "model/model.onnx").read_bytes()
    assert not list(tmp_path.rglob("elsewhere"))


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_link_in_the_folder_changes_no_file_elsewhere(name: str, run: Path) -> None:
    mine = run.parent.parent / "thesis.tex"
    mine.write_text("chapter 1\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(mine)
    assert cli.main(["sync", str(run)]) == 2
    with pytest.raises(UserError, match=r"symbolic link|outside"):
        tracking.add(run, 1, ACCURACY, of=CHECKPOINT, on=FACES)
        replay(run)
    assert mine.read_text() == "chapter 1\n"


DAMAGED = ["", "[]", "{}", "null", '{"key": 3}', "[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_ledger_is_named(content: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "tracking.json").write_text(content)
    assert cli.main(["sync", str(run)]) == 2
    assert "tracking.json: is damaged" in capsys.readouterr().err
