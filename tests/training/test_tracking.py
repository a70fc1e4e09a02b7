"""Tracking against a real MLflow server: all of it, once, in order, whatever happens to the server."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from tracked_runs import ACCURACY, CHECKPOINT, FACES, NOTHING, arrived, expected, log, track

from mlflow_server import Server, wait_until
from sparface import cli
from sparface.errors import UserError
from sparface.runs import sender, tracking
from sparface.runs.record import read_metrics
from sparface.runs.tracking import replay


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(sender, "LONGEST_PAUSE", 0.5)


def test_the_server_may_be_down_or_hang_and_come_back(
    server: Server, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = track(run, server.uri, seed=1)
    log(tracker, range(0, 20))
    wait_until(lambda: "connection refused" in caplog.text)
    assert tracker.run_id is None
    server.start()
    wait_until(lambda: "is back" in caplog.text)
    assert arrived(server.uri, run) == expected(range(20))
    server.signal(signal.SIGSTOP)  # it still accepts, and never answers
    log(tracker, range(20, 40))
    tracker.picture(30, "sparring faces", np.zeros((4, 6, 3), np.uint8))
    tracker.event(30, "resume", "from step-000000020")
    try:
        wait_until(lambda: "timed out" in caplog.text)
    finally:
        server.signal(signal.SIGCONT)
    log(tracker, range(40, 50))
    tracker.close()
    assert arrived(server.uri, run) == expected(range(50))
    client = MlflowClient(server.uri)
    found = client.get_run(tracker.run_id)
    assert (found.info.status, found.info.run_name, found.data.params) == ("FINISHED", "run", {"seed": "1"})
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == [
        "config.yaml",
        "events.jsonl",
        "previews",
    ]
    assert caplog.text.count("metrics wait on disk") == 2


def test_a_resumed_run_is_the_same_run(server: Server, run: Path) -> None:
    first = track(run, server.uri, seed=1, gone="x" * 9000)
    log(first, range(0, 30))
    first.close("KILLED")
    assert MlflowClient(server.uri).get_run(first.run_id).info.status == "KILLED"
    again = track(run, server.uri, seed=2, new=None)
    log(again, range(15, 45))
    again.log(44, {"validation/accuracy": 0.5})
    again.close()
    assert again.run_id == first.run_id
    assert arrived(server.uri, run) == expected(range(45))
    assert arrived(server.uri, run, "validation/accuracy") == [(44, 0.5)]
    found = MlflowClient(server.uri).get_run(first.run_id)
    assert found.info.status == "FINISHED"
    assert (found.data.params["seed"], found.data.params["new"]) == ("1", "None")
    assert len(found.data.params["gone"]) == 500
    assert "seed was 1, is 2" in (run / "events.jsonl").read_text()
    assert [record["images"] for record in read_metrics(run)] == [*range(45), 44]


def test_many_metrics_are_sent_in_order(server: Server, run: Path) -> None:
    tracker = track(run, server.uri)
    for seen in range(300):
        tracker.log(seen, {f"metric {i}": float(seen) for i in range(10)})
    tracker.log(300, {"odd/näme (%)": float("nan"), "endless": float("inf")})
    tracker.close()
    for i in range(10):
        assert arrived(server.uri, run, f"metric {i}") == [(seen, float(seen)) for seen in range(300)]
    metrics = MlflowClient(server.uri).get_run(tracker.run_id).data.metrics
    assert {"odd/n_me ___", "endless", "system/cpu_utilization_percentage"} <= metrics.keys()


CRASH = """
import os, sys
from pathlib import Path
from sparface import cli
from sparface.config import TrackingConfig
from sparface.runs import sender
from sparface.runs.tracking import Tracker

update, sent = sender.Ledger.update, 0
def crash_at_the_third(self, **fields):
    global sent
    sent += "sent" in fields and self["run_id"] is not None
    if sent == 3:
        os.kill(os.getpid(), 9)  # MLflow has them, the ledger does not know
    update(self, **fields)
sender.Ledger.update, sender.BATCH = crash_at_the_third, 10
tracker = Tracker(Path(sys.argv[1]), TrackingConfig(uri=sys.argv[2]), params={})
for seen in range(100):
    tracker.log(seen, {"loss": 1 / (1 + seen)})
tracker._sender.join()
"""


def test_a_kill_between_sending_and_noting_it_doubles_nothing(server: Server, run: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", CRASH, str(run), server.uri], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    before = arrived(server.uri, run)
    noted = json.loads((run / "tracking.json").read_text())["sent"]["metrics.jsonl"]
    told = (run / "metrics.jsonl").read_bytes()[:noted].count(b"\n")
    assert told < len(before) < 100
    tracker = track(run, server.uri)
    log(tracker, range(50, 120))
    tracker.close()
    assert arrived(server.uri, run) == expected(range(120))


def test_a_run_created_but_not_noted_is_found_again(
    database: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = track(run, database)
    log(first, range(5))
    first.close()
    ledger = json.loads((run / "tracking.json").read_text())
    (run / "tracking.json").write_text(json.dumps(ledger | {"run_id": None, "sent": NOTHING}))
    again = track(run, database)
    again.close()
    assert again.run_id == first.run_id
    assert arrived(database, run) == expected(range(5))


def test_a_server_without_the_run_gets_all_of_it(server: Server, database: str, run: Path) -> None:
    first = track(run, database)
    log(first, range(5))
    first.picture(3, "faces", np.zeros((4, 4, 3), np.uint8))
    first.close()
    moved = track(run, server.uri)
    log(moved, range(5, 8))
    moved.close()
    assert moved.run_id != first.run_id
    assert arrived(server.uri, run) == expected(range(8))
    files = MlflowClient(server.uri).list_artifacts(moved.run_id, "previews")
    assert [file.path for file in files] == ["previews/000000003-faces.png"]


def test_a_database_is_whole_or_not_there(run: Path) -> None:
    """Jobs killed while they make it leave nothing that hinders the next, of which one makes it."""
    database = run.parent / "mlflow.db"
    creation = "import sys; from sparface.runs.server import connect; connect(sys.argv[1])"
    command = [sys.executable, "-c", creation, f"sqlite:///{database}"]
    with subprocess.Popen(command) as killed:
        wait_until((run.parent / ".mlflow.db.new").exists)
        time.sleep(0.1)  # some tables are there
        killed.kill()
    assert not database.exists()
    others = [subprocess.Popen(command) for _ in range(2)]
    assert [other.wait(120) for other in others] == [0, 0]
    assert [path.name for path in run.parent.iterdir() if "mlflow" in path.name] == ["mlflow.db"]
    tracker = track(run, f"sqlite:///{database}")
    log(tracker, range(3))
    tracker.close("FINISHED", timeout=120)
    assert arrived(f"sqlite:///{database}", run) == expected(range(3))


def test_replay_sends_what_waits(database: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = track(run, "http://127.0.0.1:9")
    log(tracker, range(7))
    tracker.close("FINISHED")
    with pytest.raises(UserError, match=r"tracked at http://127\.0\.0\.1:9; set MLFLOW_TRACKING_URI"):
        replay(run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="connection refused; nothing is lost"):
        replay(run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert replay(run) == 7
    assert replay(run) == 0
    assert arrived(database, run) == expected(range(7))
    run_id = json.loads((run / "tracking.json").read_text())["run_id"]
    assert MlflowClient(database).get_run(run_id).info.status == "FINISHED"
    with pytest.raises(UserError, match="was not tracked"):
        replay(run.parent)


def test_what_is_measured_after_training_arrives_and_the_run_stays_ended(
    database: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    tracker = track(run, database)
    log(tracker, range(3))
    tracker.close("FINISHED")
    ended = MlflowClient(database).get_run(str(tracker.run_id)).info.end_time
    tracking.add(run, 2, ACCURACY, of=CHECKPOINT, on=FACES)
    assert arrived(database, run, "evaluation/lfw/accuracy") == [(2, 0.75)]
    assert MlflowClient(database).get_run(str(tracker.run_id)).info.end_time == ended
    assert cli.main(["sync", str(run)]) == 0
    assert f"{run}: 0 records sent" in capsys.readouterr().out


def test_what_is_measured_while_the_run_trains_is_sent_by_its_tracker(database: str, run: Path) -> None:
    with claim_elsewhere(run):
        tracker = track(run, database)
        log(tracker, range(3))
        tracking.add(run, 2, ACCURACY, of=CHECKPOINT, on=FACES)
        tracker.close("FINISHED")
    assert arrived(database, run, "evaluation/lfw/accuracy") == [(2, 0.75)]


@contextmanager
def claim_elsewhere(run: Path) -> Iterator[None]:
    """Another process trains in the folder."""
    hold = "import sys; from pathlib import Path; from sparface.runs.folder import claim\n"
    hold += "with claim(Path(sys.argv[1]), 0): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield
        holder.communicate()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x", "http://no.such.host.invalid", "hang"])
def test_training_goes_on_with_a_server_that_is_no_use(uri: str, run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here = f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}" if uri == "hang" else uri
        tracker = track(run, here)
        log(tracker, range(10))
        tracker.event(9, "note", "still here")
        start = time.monotonic()
        tracker.close(timeout=1.0)
        assert time.monotonic() - start < 3.0
    assert [record["images"] for record in read_metrics(run)] == list(range(10))
    assert "secret" not in (run / "tracking.json").read_text()


def test_what_follows_a_torn_line_is_whole_and_arrives(database: str, run: Path) -> None:
    """A run killed in the middle of a line, evaluated, then trained on."""
    (run / "metrics.jsonl").write_text('{"images": 0, "time": 0, "loss": 1.0}\n{"images": 1, "ti')
    tracking.add(run, 0, ACCURACY, of=CHECKPOINT, on=FACES)
    assert [record["images"] for record in read_metrics(run)] == [0, 0]
    tracker = track(run, database)
    log(tracker, range(1, 4))
    tracker.close("FINISHED", timeout=60)
    assert [seen for seen, _ in arrived(database, run)] == [0, 1, 2, 3]
    assert arrived(database, run, "evaluation/lfw/accuracy") == [(0, 0.75)]
