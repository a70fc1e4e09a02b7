"""A study on a real MLflow server: one run for the study, one below it for each training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from study_files import small_study, started, write_study

from mlflow_server import Server
from sparface import cli
from sparface.runs.mlflow_run import MlflowRun
from sparface.study import tracking
from sparface.study.folder import StudyFolder
from sparface.study.page import write_report


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def study(server: Server, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study whose parts have run and were tracked; it was looked at, and not sent yet."""
    folder, tree = tmp_path_factory.mktemp("studies"), small_study()
    tree["experiments"]["S"]["train"]["tracking.enabled"] = True
    file = write_study(folder / "small.yaml", tree)
    found = started(file, folder / "out", f"faces={faces}", f"others={faces}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        for name in found.plan.parts:
            assert found.run(name, cli.main, cli.checked) == 0
        assert cli.main(["study", str(found.path)]) == 0
    return found


def runs(server: Server) -> list[Any]:
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("Small")
    return list(client.search_runs([experiment.experiment_id]))


def test_the_study_is_the_parent_of_its_trainings(
    server: Server, study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert len(runs(server)) == 4 and not any(tracking.PARENT in run.data.tags for run in runs(server))
    stranger = MlflowClient(server.uri).create_run("0")
    ledger = study.path / "runs/S.plain.16.s1/tracking.json"
    mine = ledger.read_text()
    for text in (json.dumps(json.loads(mine) | {"run_id": stranger.info.run_id}), mine, mine):
        ledger.write_text(text)
        tracking.send(study, write_report(study))
    parent, *more = [run for run in runs(server) if run.info.run_name == "study"]
    assert not more and parent.info.status == "FINISHED"
    text = parent.data.tags[tracking.DESCRIPTION]
    assert text.startswith("**S**\n\n| claim |") and "| it helps | not reproduced |" in text
    assert "| arm | trained on |" in text
    artifacts = MlflowClient(server.uri).list_artifacts(parent.info.run_id)
    assert {file.path for file in artifacts} == set(tracking.FILES)
    children = [run for run in runs(server) if run.data.tags.get(tracking.PARENT) == parent.info.run_id]
    assert len(children) == 4 and len(runs(server)) == 5
    assert {(run.data.tags["arm"], run.data.tags["seed"]) for run in children} == {
        (arm, seed) for arm in ("plain", "varied") for seed in ("0", "1")
    }
    shown = [run for run in children if run.data.tags["arm"] == "plain"]
    means = [run.data.metrics["evaluation/faces/accuracy"] for run in shown]
    assert parent.data.metrics["S/plain/others.accuracy"] == pytest.approx(sum(means) / 2)
    assert not any(name.startswith("tracking.") for name in shown[0].data.params)
    assert tracking.PARENT not in MlflowClient(server.uri).get_run(stranger.info.run_id).data.tags


def test_more_figures_than_mlflow_takes_at_once(server: Server, tmp_path: Path) -> None:
    client = MlflowClient(server.uri)
    run = MlflowRun(client, client.create_run("0").info.run_id, tmp_path)
    run.log_metrics([Metric(f"m{number}", number, 0, 0) for number in range(1500)])
    assert len(client.get_run(run.run_id).data.metrics) == 1500


def test_a_server_that_is_gone_is_said(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking.send(study, write_report(study))
    assert "the study's summary was not sent, run the study again" in caplog.text
    caplog.clear()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tracking.send(study, write_report(study))
    assert "was tracked at http://127.0.0.1" in caplog.text
    assert not (study.path / "runs/mlflow.db").exists()
