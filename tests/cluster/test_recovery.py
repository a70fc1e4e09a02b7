"""On a real SLURM, a training struck by everything that happens on clusters ends as if nothing had."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_testbed import SCRIPT, Testbed, command, wait_until

from sparface.cli import job_command
from sparface.cluster import Command, Resources, repeated, slurm, submit
from sparface.cluster.folder import JobFolder
from sparface.cluster.job import PAUSE, REFUSED, progress
from sparface.cluster.jobs import read
from sparface.errors import UserError
from tiny_config import TINY

pytestmark = pytest.mark.timeout(900)
IMAGES = 240
OPTIONS = TINY | {
    "schedule.images": IMAGES,
    # on: a run that goes on must go on in the same MLflow run
    "tracking.enabled": "true",
    "training.timeout": 40,  # on busy cores, one process of a job may start 20 s after the others
}


def train(faces: Path, run: Path | str) -> list[str]:
    options = [f"--{key}={value}" for key, value in OPTIONS.items()]
    return ["train", "--config", "smoke", *options, f"--data.shards={faces}", f"--out={run}"]


def training(faces: Path, run: Path) -> Command:
    return job_command(train(faces, run))


@dataclass
class Job:
    """A training on the testbed."""

    bed: Testbed
    id: str
    folder: JobFolder
    run: Path

    @classmethod
    def start(cls, bed: Testbed, faces: Path, asked: Resources) -> Job:
        run = bed.folder / "run"
        submission = submit([training(faces, run)], asked, logs=bed.folder / "jobs")
        return cls(bed, submission.ids[0], JobFolder(submission.folder), run)

    def starts(self) -> list[dict[str, Any]]:
        return [record for record in self.folder.attempts(0) if record["event"] == "start"]

    def wait_for_progress(self) -> None:
        """Until the newest attempt has saved something: it is in the middle of its work."""
        before = progress(self.run)
        wait_until("a new checkpoint", lambda: progress(self.run) > before, 120, every=0.05)

    def wait_for_start(self, number: int, seconds: float = 120) -> None:
        wait_until(f"attempt {number}", lambda: len(self.starts()) > number, seconds)

    def end(self, state: str = "COMPLETED") -> None:
        self.bed.wait_for_state(int(self.id), state, seconds=180)

    def processes(self, rank: int) -> tuple[psutil.Process, psutil.Process]:
        """A task's supervisor and its trainer."""
        for process in psutil.process_iter(["cmdline", "environ"]):  # None for those that have ended
            environment = process.info["environ"] or {}
            if "submitit.core._submit" in (process.info["cmdline"] or []) and (
                environment.get("SLURM_JOB_ID") == self.id and environment.get("SLURM_PROCID") == str(rank)
            ):
                return process, process.children()[0]
        raise AssertionError(f"job {self.id} has no task {rank}")


def warn(job: Job) -> None:
    """What SLURM does before the time limit."""
    command("scancel", "--signal=USR2", job.id)


def requeue(job: Job) -> None:
    command("scontrol", "requeue", job.id)


def preempt(job: Job) -> None:
    urgent = job.bed.sbatch("sleep 1", "--partition=urgent", "--nodes=2", "--exclusive")
    job.bed.wait_for_state(urgent, "COMPLETED", seconds=90)


def kill_trainer(job: Job) -> None:
    job.processes(rank=1)[1].kill()


def kill_task(job: Job) -> None:
    """A trainer and its supervisor at once."""
    supervisor, trainer = job.processes(rank=1)
    supervisor.send_signal(signal.SIGSTOP)  # it must not see its child's end
    trainer.kill()
    supervisor.kill()


def kill_node(job: Job) -> None:
    job.bed.verb("kill-node", "node2")
    wait_until("the loss", lambda: job.bed.state(int(job.id)) != "RUNNING", 90)
    job.bed.verb("restore-node", "node2")


def cut_link(job: Job) -> None:
    job.bed.verb("cut-link", "node2")
    wait_until("the loss", lambda: job.bed.state(int(job.id)) != "RUNNING", 90)
    job.bed.verb("restore-link", "node2")


Strike = Callable[[Job], None]


TWO = Resources(nodes="2", partition="preemptible", time="20")


@pytest.fixture(scope="module")
def undisturbed(
    running_testbed: None, faces: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    """The losses of a run that nothing happened to."""
    bed = Testbed(tmp_path_factory.mktemp("undisturbed"))
    bed.clean()
    job = Job.start(bed, faces, TWO)
    job.end()
    assert len(job.starts()) == 1
    return losses(job.run)


@pytest.mark.parametrize(
    "strikes",
    [[warn, requeue, preempt], [kill_trainer, kill_task, cut_link, kill_node]],
    ids=["asked to stop", "struck dead"],
)
def test_a_run_ends_as_if_nothing_had_happened(
    testbed: Testbed,
    undisturbed: dict[int, float],
    faces: Path,
    strikes: list[Strike],
) -> None:
    """One after the other, each in the middle of an attempt; the losses are those without, to the bit."""
    job = Job.start(testbed, faces, TWO)
    for number, strike in enumerate(strikes, 1):
        job.wait_for_progress()
        began = time.monotonic()
        strike(job)
        job.wait_for_start(number)
        print(f"{strike.__name__}: {time.monotonic() - began:.0f} s to the next start")
    job.end()
    assert len(job.starts()) == len(strikes) + 1
    assert losses(job.run) == undisturbed
    assert mlflow_runs(job.run) == 1


def test_a_job_goes_on_with_fewer_nodes(testbed: Testbed, undisturbed: dict[int, float], faces: Path) -> None:
    """`--nodes 1-2`: when a node dies for good, the other one sees the same faces to the end."""
    job = Job.start(testbed, faces, Resources(nodes="1-2", tasks_per_node=2, time="20"))
    job.wait_for_progress()
    testbed.verb("kill-node", "node2")
    job.end()
    assert [start["tasks"] for start in job.starts()] == [4, 2]
    assert losses(job.run) == pytest.approx(undisturbed, rel=1e-4)
    assert mlflow_runs(job.run) == 1


def test_a_cancelled_job_stays_cancelled(testbed: Testbed, faces: Path) -> None:
    job = Job.start(testbed, faces, Resources(time="20"))
    job.wait_for_progress()
    command("scancel", job.id)
    wait_until("its end", lambda: testbed.accounted(int(job.id)) == ["CANCELLED"], 60)
    time.sleep(2 * PAUSE)  # whoever was to bring it back would have tried by now
    assert testbed.accounted(int(job.id)) == ["CANCELLED"]
    assert len(job.starts()) == 1
    assert progress(job.run) > 0


def test_a_requeue_that_slurm_refuses_ends_the_job(testbed: Testbed) -> None:
    """Here because it is no batch job. It must not hold its node for ever, asking."""
    code = "import os; from sparface.cluster.job import Place, await_requeue"
    code += "; await_requeue(Place(os.environ['SLURM_JOB_ID'], scheduled=True))"
    done = testbed.try_srun(sys.executable, "-c", code, seconds=REFUSED + 60)
    assert done.returncode == 1
    assert "(Only batch jobs are accepted or processed for job" in done.stderr
    assert "submit it again" in done.stderr


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Resources(partition="nowhere"), "invalid partition specified: nowhere"),
        (Resources(partition="short", time="30"), "time"),
        (Resources(gpus_per_node=3), "node configuration is not available"),
    ],
)
def test_what_slurm_refuses_is_said_in_one_line(
    running_testbed: None, faces: Path, tmp_path: Path, asked: Resources, reason: str
) -> None:
    with pytest.raises(UserError, match=f"(?s).*{reason}.*partitions: main: time up to infinite") as refused:
        submit([training(faces, tmp_path / "run")], asked, logs=tmp_path / "jobs")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("jobs/*"))


def test_an_array_of_seeds(testbed: Testbed, faces: Path) -> None:
    """Each task has its own run; a requeue of one leaves the other alone."""
    words = [*train(faces, testbed.folder / "seed-{task}"), "--training.seed={task}"]
    commands = [job_command(each) for each in repeated(words, 2)]
    submission = submit(commands, Resources(nodes="1", time="20"), logs=testbed.folder / "jobs")
    wait_until("a checkpoint", lambda: progress(testbed.folder / "seed-1") > 0, 120)
    command("scontrol", "requeue", submission.ids[1])
    for number in submission.ids:
        wait_until(f"the end of {number}", lambda job=number: ended(job), 240)  # type: ignore[misc]
    rows = list(read(testbed.folder / "jobs"))
    assert [row.job for row in rows] == list(submission.ids)
    assert [(row.state, row.images, row.total) for row in rows] == [("COMPLETED", IMAGES, IMAGES)] * 2
    assert [row.starts for row in rows] == [1, 2]
    seeds = [losses(testbed.folder / f"seed-{task}") for task in range(2)]
    assert seeds[0] != seeds[1]


def ended(job: str) -> bool:
    life = slurm.life(job)
    return life is not None and life.state == "COMPLETED"


@pytest.mark.parametrize("form", ["train", "train-torchrun"])
def test_sbatch_files_go_on_too(
    testbed: Testbed,
    undisturbed: dict[int, float],
    faces: Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without submitit: asked to stop, then struck by the death of one process."""
    active = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", active)  # submitted with sparface's environment active
    run, file = testbed.folder / "run", SCRIPT.parent / f"{form}.sbatch"
    tasks = {"train": "--ntasks-per-node=2", "train-torchrun": "--export=ALL,PROCESSES=2"}[form]
    sizes = ("--nodes=1", tasks, "--gpus-per-node=0", "--cpus-per-task=1", "--time=20", "--parsable")
    log = ("--chdir", str(SCRIPT.parents[1]), "--output", str(testbed.folder / "%j.out"))
    job = int(command("sbatch", *sizes, *log, file, *train(faces, run)[1:]).stdout)
    wait_until("a checkpoint", lambda: progress(run) > 0, 120)
    command("scancel", f"--signal={'TERM' if form == 'train-torchrun' else 'USR2'}", str(job))
    testbed.wait_for_output(job, "resuming at", 120)
    before = progress(run)
    wait_until("another checkpoint", lambda: progress(run) > before, 120)
    trainer(job).kill()
    testbed.wait_for_state(job, "COMPLETED", seconds=240)
    assert testbed.output(job).count("resuming at") == 2
    assert losses(run) == pytest.approx(undisturbed, rel=1e-4)


def trainer(job: int) -> psutil.Process:
    """The process of rank 1."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            place = process.environ()
            if place.get("SLURM_JOB_ID") == str(job) and place.get("RANK") == "1":
                return process
    raise AssertionError(f"job {job} has no rank 1")


def losses(run: Path) -> dict[int, float]:
    """Loss by images seen; fails when an interval was logged twice."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {r["images"]: r["loss"] for r in records if "loss" in r}
    logged = [r["images"] for r in records if "loss" in r]
    assert logged == list(range(16, IMAGES + 1, 16))
    return found


def mlflow_runs(run: Path) -> int:
    with sqlite3.connect(run.parent / "mlflow.db") as database:
        ((runs,),) = database.execute("select count(*) from runs")
    assert json.loads((run / "tracking.json").read_text())["run_id"]
    return int(runs)
