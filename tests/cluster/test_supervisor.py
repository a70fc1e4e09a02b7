"""What a supervisor makes of foreign things in its folders, of taken ports, and of a SLURM that refuses."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from test_submit import child_of, train, training, wait_until

from sparface.cluster import Resources, job, submit
from sparface.cluster.folder import ATTEMPTS_FILE, JobFolder
from sparface.cluster.job import PORTS, Place, Task, await_requeue, progress
from sparface.cluster.jobs import progress_of, read
from sparface.errors import STOPPED_EARLY

pytestmark = pytest.mark.timeout(180)


# -- folders ---------------------------------------------------------------------------------------------


def set_aside(run: Path) -> None:
    """What people and tools leave between checkpoints."""
    folder = run / "checkpoints"
    for name in ("step-000000080.keep", "step-best", "step-", "step-٣", "step--1"):
        (folder / name).mkdir(parents=True)
    (folder / "step-000000090.txt").write_text("a note")


FOREIGN = [
    b"[]",
    b'{"task": 0}',
    b'{"task": 0, "event": "end"}',
    b'{"task": 0, "event": ["end"], "attempt": 0, "rank": 0, "host": "", "pid": 1}',
    b'{"task": 0, "event": "start", "attempt": "0", "rank": 0, "host": "x", "pid": 1}',
    b'{"task": 0, "event": "end", "attempt": 0, "rank": 0, "host": "x", "pid": 1, "code": null}',
    b'{"task": 0, "event": "end", "attempt": 0, "rank": 0, "host": "x", "pid": 1, "code": 0, "signal": 9}',
    b"[" * 100_000,
    b"\xff\x00",
    b'{"task": 0, "torn',
]


def test_foreign_names_between_checkpoints_are_left_alone(tmp_path: Path) -> None:
    set_aside(tmp_path)
    assert progress(tmp_path) == 0 and progress_of(tmp_path).checkpoint is None
    (tmp_path / "checkpoints/step-000000040").mkdir()
    assert progress(tmp_path) == 40
    shown = progress_of(tmp_path)
    assert shown.checkpoint == 40 and shown.checkpoint_age is not None and shown.checkpoint_age < 60


def test_a_job_survives_foreign_things_in_its_folders(faces: Path, tmp_path: Path) -> None:
    """They come while it works; its trainer dies; it must go on to its end all the same."""
    run, logs = tmp_path / "run", tmp_path / "jobs"
    folder = JobFolder(submit([training(faces, run)], Resources(), cluster="local", logs=logs).folder)
    wait_until("a checkpoint", lambda: progress(run))
    set_aside(run)
    with (folder.path / ATTEMPTS_FILE).open("ab") as file:
        file.write(b"\n".join([*FOREIGN, b""]))
    child_of(folder.attempts(0)[0]["pid"]).kill()
    wait_until("the end", lambda: next(read(logs)).state != "RUNNING")
    (row,) = read(logs)
    assert (row.state, row.starts) == ("COMPLETED", 2)


def test_an_end_that_cannot_be_noted_counts_all_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A job whose folder cannot be written is not done because nobody could say otherwise."""
    (tmp_path / ATTEMPTS_FILE).mkdir()
    task = Task(("train", "--no-such-option"), JobFolder(tmp_path), tmp_path / "run", retries=0)
    assert task.attempt(Place("7")) == "refused"
    assert f"cannot write to {tmp_path}" in capfd.readouterr().err


# -- ports -----------------------------------------------------------------------------------------------


def port(number: str, attempt: int = 0) -> int:
    return int(Place(job=number, attempt=attempt).environment()["MASTER_PORT"])


@pytest.mark.parametrize("step", [1, 100, 150, len(PORTS) // 4, len(PORTS), 1 << 16])
def test_jobs_rarely_share_a_port(step: int) -> None:
    """As rarely as if each were drawn, whatever lies between their numbers: of 1,000 draws from 22,768 ports,
    978 are expected to differ."""
    numbers = range(1000, 1000 + 1000 * step, step)
    assert len({port(str(number)) for number in numbers}) > 950
    assert len({port(f"77_{number}") for number in numbers}) > 950
    assert all(port(str(number)) in PORTS for number in numbers)


def test_each_attempt_has_another_port() -> None:
    assert len({port("1000", attempt) for attempt in range(20)}) == 20


def test_a_taken_port_costs_one_attempt(faces: Path, tmp_path: Path) -> None:
    """Rank 0 of two: it fails, which the supervisor tries again elsewhere; it is no mistake of the user's."""
    task = Task(tuple(train(faces, tmp_path / "run")), JobFolder(tmp_path), tmp_path / "run", retries=3)
    place = Place("7", world_size=2, local_size=2)
    with socket.create_server(("", port("7"))):
        began = time.monotonic()
        assert task.attempt(place) == "failed"
    assert time.monotonic() - began < 60
    assert port("7", 1) != port("7")


# -- a SLURM that refuses, or is silent --------------------------------------------------------------------


def pretend_scontrol(folder: Path, show: str, requeue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `scontrol` of these two answers; patience of some tenths of a second."""
    script = folder / "scontrol"
    script.write_text(f"#!/bin/sh\ncase $1 in show) {show};; requeue) {requeue};; esac\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name, seconds in (("PAUSE", 0.05), ("REFUSED", 0.5), ("SILENT", 0.5)):
        monkeypatch.setattr(job, name, seconds)


RUNNING = "echo JobId=7 JobState=RUNNING Reason=None Requeue=0 Restarts=0 BatchFlag=1"
UNREACHABLE = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
DISABLED = "echo 'Requested operation is presently disabled for job 7' >&2; exit 1"


@pytest.mark.parametrize(
    ("show", "requeue", "code", "said"),
    [
        (RUNNING, DISABLED, 1, "(Requested operation is presently disabled for job 7)"),
        (RUNNING, "exit 0", 1, "does not requeue the job"),
        (UNREACHABLE, "exit 1", 1, "SLURM has not answered"),
        ("echo JobId=7 JobState=CANCELLED Restarts=0", DISABLED, STOPPED_EARLY, ""),
        ("echo JobId=7 JobState=RUNNING Restarts=1", DISABLED, STOPPED_EARLY, ""),
    ],
    ids=["refused", "not heard", "silent", "cancelled", "put back already"],
)
def test_a_job_that_cannot_be_put_back_gives_up_its_nodes(
    show: str,
    requeue: str,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend_scontrol(tmp_path, show, requeue, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        await_requeue(Place("7", scheduled=True))
    assert ended.value.code == code
    errors = capsys.readouterr().err
    assert said in errors and ("submit it again" in errors) == (code == 1)


def test_a_controller_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent at first, then it takes the job back."""
    asked, back = tmp_path / "asked", tmp_path / "back"
    show = f"echo >> {asked}; if [ -e {back} ]; then echo JobState=PENDING Restarts=1"
    show += f"; elif [ $(wc -l < {asked}) -lt 4 ]; then exit 1; else {RUNNING}; fi"
    pretend_scontrol(tmp_path, show, f"touch {back}", monkeypatch)
    monkeypatch.setattr(job, "SILENT", 30)
    with pytest.raises(SystemExit) as ended:
        await_requeue(Place("7", scheduled=True))
    assert ended.value.code == STOPPED_EARLY and back.exists()
