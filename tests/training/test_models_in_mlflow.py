"""A run's data sets and checkpoints in a real MLflow: each once, linked, whatever happens on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from small_checkpoints import save_now

from mlflow_server import Server

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
from evaluation_runs import SIZE, small_config, write_checkpoint

from sparface import cli
from sparface.config import TrackingConfig
from sparface.errors import UserError
from sparface.runs import tracking
from sparface.runs.checkpoint import CheckpointStore
from sparface.runs.lineage import Checkpoint, Dataset
from sparface.runs.servable import for_pictures
from sparface.runs.tracking import Tracker, replay
from sparface.runs.trained import open_run
from sparface.shards import ShardSet


def use(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """Make an address the one that the user names, to sparface and to MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def models(uri: str, run: Path) -> list[LoggedModel]:
    """The run's models in the order of their checkpoints."""
    client, run_id = MlflowClient(uri), json.loads((run / "tracking.json").read_text())["run_id"]
    found = client.get_run(run_id)
    listed = client.search_logged_models([found.info.experiment_id], f"source_run_id = '{run_id}'")
    linked = {output.model_id: output.step for output in found.outputs.model_outputs}
    assert linked == {model.model_id: int(model.params["images_seen"]) for model in listed}
    return sorted(listed, key=lambda model: linked[model.model_id])


def figures(model: LoggedModel) -> dict[tuple[str, str | None], float]:
    """By metric and data set; with whatever came twice refused."""
    found = [((metric.key, metric.dataset_name), metric.value) for metric in model.metrics or []]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_checkpoints_are_models_with_their_figures_and_their_end(
    run: Path, faces: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, database)
    tracker, shards = Tracker(run, TrackingConfig(), params={}), ShardSet.open(faces)
    store = CheckpointStore(run / "checkpoints", keep=2, on_publish=tracker.look_at_checkpoints)
    for kind in ("training", "validation"):
        tracker.used(shards, kind)  # type: ignore[arg-type]
    for images in (10, 20, 30):
        tracker.validated(images, {"accuracy": images / 100}, shards)
        save_now(store, images)
    tracker.close("KILLED", timeout=120)
    first = models(database, run)
    assert [(m.name, m.status, m.params["path"]) for m in first] == [
        (f"step-{images:09d}", "READY", str(store.folder / f"step-{images:09d}")) for images in (10, 20, 30)
    ]
    assert [m.tags.get("sparface.deleted") for m in first] == ["true", None, None]
    assert [figures(m) for m in first] == [{("validation/accuracy", "faces"): n / 100} for n in (10, 20, 30)]
    assert first[2].params["digest"] == Checkpoint.at(store.folder / "step-000000030").digest

    resumed = Tracker(run, TrackingConfig(), params={})
    resumed.used(shards, "training")
    resumed.close("FINISHED", timeout=120)
    on, of = Dataset("lfw", "d" * 64, 60, 12, "shards/lfw"), Checkpoint.at(store.folder / "step-000000020")
    tracking.add(run, 20, {"evaluation/lfw/accuracy": 0.75}, of=of, on=on)
    assert [m.model_id for m in models(database, run)] == [m.model_id for m in first]
    assert figures(models(database, run)[1])["evaluation/lfw/accuracy", "lfw"] == 0.75

    found = MlflowClient(database).get_run(str(tracker.run_id))
    inputs = {
        (one.dataset.name, one.dataset.digest, one.tags[0].value, json.loads(one.dataset.profile)["faces"])
        for one in found.inputs.dataset_inputs
    }
    assert len(found.inputs.dataset_inputs) == len(inputs) == 2
    assert inputs == {("faces", shards.digest[:16], "training", 72), ("lfw", "d" * 16, "evaluation", 60)}
    history = MlflowClient(database).get_metric_history(str(tracker.run_id), "validation/accuracy")
    assert sorted((metric.step, metric.value) for metric in history) == [(10, 0.1), (20, 0.2), (30, 0.3)]


CRASHES = """
import os, sys
from pathlib import Path
from mlflow import MlflowClient
from sparface.runs.ledger import Ledger
from sparface.runs.tracking import replay

def kill(*arguments, **fields):
    os.kill(os.getpid(), 9)

def unless_lineage(self, spool, end):
    kill() if spool == "lineage.jsonl" else noted(self, spool, end)

noted, run = Ledger.add_sent, Path(sys.argv[1])
for owner, method, crash in (
    (MlflowClient, "log_outputs", kill),  # the model is created, and no more
    (MlflowClient, "finalize_logged_model", kill),
    (Ledger, "add_sent", unless_lineage),  # MLflow has all of it, the ledger does not know
):
    if os.fork() == 0:
        setattr(owner, method, crash)
        replay(run)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_kill_between_sending_and_noting_it_doubles_nothing(
    run: Path, faces: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    use(monkeypatch, "http://127.0.0.1:9")
    tracker = Tracker(run, TrackingConfig(), params={})
    store = CheckpointStore(run / "checkpoints", on_publish=tracker.look_at_checkpoints)
    tracker.validated(10, {"accuracy": 0.5}, ShardSet.open(faces))
    save_now(store, 10)
    tracker.close(timeout=10)
    use(monkeypatch, server.uri)
    killed = subprocess.run([sys.executable, "-c", CRASHES, run], timeout=240, capture_output=True, text=True)
    assert killed.stdout.splitlines().count(str(-signal.SIGKILL)) == 3, killed.stderr  # MLflow prints, too
    assert json.loads((run / "tracking.json").read_text())["sent"]["lineage.jsonl"] == 0
    replay(run)
    (model,) = models(server.uri, run)
    assert (model.status, figures(model)) == ("READY", {("validation/accuracy", "faces"): 0.5})


def test_a_recognizer_exported_while_the_server_is_down_is_served_later(
    run: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_checkpoint(run, small_config(Path("shards/none")), 640)
    use(monkeypatch, "http://127.0.0.1:9")
    Tracker(run, TrackingConfig(), params={}).close(timeout=10)
    assert cli.main(["export", str(run), str(tmp_path / "out"), "--register", "faces"]) == 2
    assert "not registered as faces, since MLflow does not have the model yet" in capsys.readouterr().err
    assert (tmp_path / "out" / "recognizer.onnx").is_file()
    if server.process is None:
        server.start()
    use(monkeypatch, server.uri)
    assert cli.main(["sync", str(run)]) == 0
    assert not (run / "exports").exists()
    (model,) = models(server.uri, run)
    assert served(f"models:/{model.model_id}") == pytest.approx(embeddings(run), abs=1e-5)
    network, of = for_pictures((tmp_path / "out" / "recognizer.onnx").read_bytes()), open_run(run)
    for _ in range(2):  # the same checkpoint is the same version
        version = tracking.log_recognizer(run, Checkpoint.at(of.checkpoint), network, register="faces")
        assert version == "models:/faces/1"
    (model,) = models(server.uri, run)
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "faces", "version": 1}]
    assert served("models:/faces/1") == pytest.approx(embeddings(run), abs=1e-5)
    assert len(models(server.uri, run)) == 1


PICTURES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def embeddings(run: Path) -> np.ndarray:
    """By the run's own network."""
    recognizer = open_run(run).network("recognizer")
    with torch.no_grad():
        return recognizer(torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 255).numpy()


def served(address: str) -> np.ndarray:
    """By whatever MLflow loads; other types and layouts must be refused."""
    model = mlflow.pyfunc.load_model(address)
    for wrong in (PICTURES.astype(np.float32), PICTURES.transpose(0, 3, 1, 2)):
        with pytest.raises(MlflowException, match="enforce schema"):
            model.predict(wrong)
    found = model.predict(PICTURES)["embeddings"]
    assert found.dtype == np.float32
    return np.asarray(found)


def test_a_server_without_models_takes_all_else(
    run: Path, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As MLflow 2 answers; the models are sent once there is a newer server."""

    def unknown(*arguments: object, **options: object) -> None:
        raise MlflowException("no such endpoint", error_code=1001)

    use(monkeypatch, database)
    with monkeypatch.context() as old:
        old.setattr(MlflowClient, "search_logged_models", unknown)
        tracker = Tracker(run, TrackingConfig(), params={})
        save_now(CheckpointStore(run / "checkpoints", on_publish=tracker.look_at_checkpoints), 10)
        tracker.log(10, {"loss": 1.0})
        tracker.close("FINISHED", timeout=120)
        found = MlflowClient(database).get_run(str(tracker.run_id))
        assert (found.info.status, found.data.metrics["loss"]) == ("FINISHED", 1.0)
    assert caplog.text.count("older than 3 and has no models") == 1
    assert replay(run) == 1
    assert [model.name for model in models(database, run)] == ["step-000000010"]


def test_no_file_outside_of_the_folder_becomes_a_model(
    run: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, database)
    Tracker(run, TrackingConfig(), params={}).close("FINISHED", timeout=120)
    checkpoint = {"name": "step-000000001", "digest": "0" * 64, "images": 1}
    record = {"kind": "exported", "time": 0, "checkpoint": checkpoint}
    (run / "lineage.jsonl").write_text(json.dumps(record) + "\n")
    (run / "exports").mkdir()
    (run.parent / "secret.txt").write_text("secret")
    link = run / "exports" / f"step-000000001-{'0' * 16}.onnx"
    link.symlink_to(run.parent / "secret.txt")
    with pytest.raises(UserError, match="outside the folder"):
        replay(run)
    link.unlink()
    link.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="is not a self-contained ONNX file"):
        replay(run)
