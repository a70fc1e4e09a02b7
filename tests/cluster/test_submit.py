"""`sparface submit` without a scheduler: what it refuses, and what a supervisor makes of its child's ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sparface.cli import job_command, main
from sparface.cluster import Command, Resources, submit
from sparface.cluster.folder import JobFolder
from sparface.cluster.job import Place, Task, meaning, progress
from sparface.cluster.jobs import Row, read
from sparface.cluster.submit import FOREVER, minutes, repeated
from tiny_config import TINY

pytestmark = pytest.mark.timeout(900)
IMAGES = 240
GROUPED = ["--training.batchnorm=ghost", "--data.identities_per_batch=4", "--data.images_per_identity=4"]
GROUPED += ["--training.batchnorm_group=8"]
OPTIONS = [f"--{key}={value}" for key, value in (TINY | {"training.timeout": 20}).items()]


def train(faces: Path, run: Path) -> list[str]:
    return ["train", "--config", "smoke", *OPTIONS, f"--data.shards={faces}", f"--out={run}"]


def training(faces: Path, run: Path) -> Command:
    return job_command(train(faces, run))


def wait_until(what: str, ready: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


def child_of(supervisor: int) -> psutil.Process:
    (child,) = psutil.Process(supervisor).children()
    return child


def only(logs: Path) -> Row:
    (row,) = read(logs)
    return row


# -- refused before anything is submitted -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--optimizer.lr", "1", "--out", "x"], "unknown config key optimizer.lr"),
        (["train", "--config", "smoke", "--training.seed=-1", "--out", "x"], "training.seed: -1"),
        (["--array", "2", "train", "--training.seed", "{seed}", "--out", "x"], "training.seed"),
        (["doctor"], "doctor cannot be run as a job"),
        ([], "submit: no verb given"),
        (["--nodes", "two", "train"], "--nodes: two"),
        (
            ["--nodes", "1-3", "--tasks-per-node", "2", "train", "--config", "smoke", *GROUPED, "--out", "x"],
            "4 or 6 processes get no whole groups of 8 faces; use 1 or 2, or another data.identities",
        ),
        (["--time", "soon", "train"], "--time: soon"),
        (["--gpus-per-node", "2", "--tasks-per-node", "3", "train"], "one task per GPU; leave it out"),
        (["--tasks-per-node", "2", "compare", "a", "--out", "r.html"], "compare runs in one task, not 2"),
        (["--cluster", "local", "--nodes", "2", "train", "--config", "smoke", "--out", "x"], "--nodes"),
        (["--mem", "nan", "train", "--config", "smoke", "--out", "x"], "mem: nan"),
        (
            ["--logs", "x\ntouch owned", "train", "--config", "smoke", "--out", "x"],
            "use printable characters only",
        ),
        (["--time", "5\ntouch owned", "train"], "--time: 5 touch"),
        (["--cluster", "local", "--after", "7", "train", "--config", "smoke", "--out", "x"], "--after"),
    ],
)
def test_a_mistake_is_refused_at_once(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["submit", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("jobs/*"))


def test_without_slurm_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["submit", "train", "--config", "smoke", "--out", "x"]) == 2
    assert "sbatch: not found" in (said := capsys.readouterr().err) and "--cluster local" in said


# -- small parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("30", 30), ("2:00:00", 120), ("1-00:00:00", 1440), ("1-12", 2160), ("", FOREVER)],
)
def test_time_limits_are_read_as_slurm_reads_them(limit: str, expected: int) -> None:
    assert minutes(limit) == expected


def test_array_tasks_have_their_own_arguments() -> None:
    words = ["train", "--out", "runs/seed-{task}-of-{tasks}"]
    assert repeated(words, 8)[3] == ("train", "--out", "runs/seed-3-of-8")


@pytest.mark.parametrize(
    ("code", "expected"),
    [(0, "done"), (2, "refused"), (75, "stopped"), (-12, "stopped"), (1, "failed"), (-9, "failed")],
)
def test_what_an_exit_code_means(code: int, expected: str) -> None:
    assert meaning(code) == expected


def test_only_failures_without_progress_count(tmp_path: Path) -> None:
    """Several ranks tell of one failure; what was asked to stop has not failed; a checkpoint forgives."""
    (tmp_path / "run/checkpoints/step-000000080").mkdir(parents=True)
    task = Task(("train",), JobFolder(tmp_path), tmp_path / "run", retries=3)
    for attempt, rank, code, asked, seen in [
        (0, 0, 1, "", 40),
        (1, 0, 1, "", 80),
        (1, 1, -9, "", 80),
        (2, 0, 75, "SIGUSR2", 80),
        (3, 1, -9, "", 80),
        (4, 0, 75, "", 80),
    ]:
        task.note(Place("7", rank=rank, attempt=attempt), event="end", code=code, signal=asked, progress=seen)
    (tmp_path / "attempts.jsonl").open("a").write('{"task": 0, "torn')
    assert task.failures(Place("7", attempt=4)) == 3


# -- real jobs on this machine --------------------------------------------------------------------------


def test_a_killed_and_a_warned_job_go_on(faces: Path, tmp_path: Path) -> None:
    run, logs = tmp_path / "run", tmp_path / "jobs"
    folder = JobFolder(submit([training(faces, run)], Resources(), cluster="local", logs=logs).folder)
    wait_until("a checkpoint", lambda: progress(run))
    supervisor = folder.attempts(0)[0]["pid"]
    child_of(supervisor).kill()
    wait_until("a second attempt", lambda: len(folder.attempts(0)) == 3)
    before = progress(run)
    wait_until("its checkpoint", lambda: progress(run) > before)
    os.kill(supervisor, signal.SIGUSR2)
    wait_until("the end", lambda: only(logs).state != "RUNNING")
    row = only(logs)
    assert (row.state, row.starts, row.images, row.total) == ("COMPLETED", 3, IMAGES, IMAGES)
    assert [r["code"] for r in folder.attempts(0) if r["event"] == "end"] == [-9, 75, 0]
    images = [json.loads(line)["images"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert images == sorted(set(images))


def test_tasks_start_again_together_and_end_together(faces: Path, tmp_path: Path) -> None:
    """Two processes: one is killed, both are replaced; SIGTERM to the job saves and ends it."""
    run, logs = tmp_path / "run", tmp_path / "jobs"
    submission = submit([training(faces, run)], Resources(tasks_per_node=2), cluster="local", logs=logs)
    folder = JobFolder(submission.folder)
    wait_until("a checkpoint", lambda: progress(run))
    supervisor = folder.attempts(0)[0]["pid"]
    child_of(supervisor).kill()
    wait_until("both ends", lambda: sum(r["event"] == "end" for r in folder.attempts(0)) == 2)
    before = progress(run)
    wait_until("another checkpoint", lambda: progress(run) > before)
    os.kill(int(submission.ids[0]), signal.SIGTERM)
    wait_until("the end", lambda: only(logs).state != "RUNNING")
    assert (only(logs).state, only(logs).starts) == ("STOPPED", 2)
    assert before < progress(run) < IMAGES


def debug(*words: str | Path, retries: int = 3) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparface", "submit", "--cluster", "debug", f"--retries={retries}"]
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=120)


def test_a_users_mistake_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = debug(*train(tmp_path / "nowhere", tmp_path / "run"))
    assert done.returncode == 2
    assert "sparface: error: " in done.stderr and "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert main(["jobs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["starts"]) == ("FAILED", 1)


def test_retries_are_bounded(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that repeats, here a scheduler that says nonsense about the machine, ends the job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "nonsense")
    done = debug(*train(faces, tmp_path / "run"), "--training.threads=0", retries=1)
    assert done.returncode == 1, done.stderr
    assert "giving up: 2 consecutive attempts failed without progress" in done.stderr
    assert only(tmp_path / "jobs").starts == 2


def test_jobs_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = tmp_path / "jobs"
    folder = JobFolder.new(logs, "train")
    folder.describe(
        name="train", cluster="slurm", tasks=[{"id": "999999", "command": ["train"], "out": "runs/a"}]
    )
    assert main(["jobs", str(logs)]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["JOB", "NAME", "STATE"]
    assert line.split()[:5] == ["999999", "train", "unknown", "train", "runs/a"]
    assert header.index("LOGS") == line.index(os.path.relpath(folder.path))
    assert main(["jobs", str(tmp_path / "nowhere")]) == 2
