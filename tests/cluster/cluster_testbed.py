"""The SLURM testbed as tests see it; every wait is bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "testbed"
STATE = Path(os.environ.get("SPARFACE_TESTBED") or "/var/lib/sparface-testbed")

# States of `sacct` and `squeue` in which a job will not run again by itself.
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}


def command(*words: str | Path, seconds: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; one that fails fails the test with what the command said."""
    done = subprocess.run([str(word) for word in words], text=True, capture_output=True, timeout=seconds)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(done.args)} → {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def wait_until(what: str, ready: Callable[[], bool], seconds: float, every: float = 0.2) -> float:
    """Waits until `ready()`; returns the seconds that took, or fails and names what did not come."""
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(every)
    return time.monotonic() - began


@dataclass
class Testbed:
    """Verbs, jobs and waits; jobs run and write in `folder`."""

    __test__ = False  # not a test class, whatever its name

    folder: Path

    def verb(self, *words: str, seconds: float = 90) -> str:
        """`slurm/testbed` with these words, such as `verb("cut-link", "node2")`."""
        return command(sys.executable, SCRIPT, *words, seconds=seconds).stdout

    def status(self) -> tuple[bool, str]:
        """Whether all is well, and what `status` says in one line."""
        done = command(sys.executable, SCRIPT, "status", check=False)
        return done.returncode == 0, " | ".join((done.stdout + done.stderr).strip().splitlines())

    def srun(self, *words: str, seconds: float = 60) -> str:
        return command("srun", *words, seconds=seconds).stdout

    def try_srun(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        return command("srun", *words, seconds=seconds, check=False)

    def sbatch(self, script: str, *options: str) -> int:
        """Submits a bash script and returns the job's number; it runs and writes in the test's folder."""
        path = self.folder / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        where = ("--chdir", str(self.folder), "--open-mode=append", "--output", str(self.folder / "%j.out"))
        return int(command("sbatch", "--parsable", *where, *options, path).stdout.split(";")[0])

    def output(self, job: int) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def state(self, job: int) -> str:
        """The state by slurmctld (squeue), which knows it at once; sacct follows some seconds later."""
        return command("squeue", "--noheader", "--states=all", "-j", str(job), "-o", "%T").stdout.strip()

    def wait_for_state(self, job: int, *states: str, seconds: float = 60) -> str:
        """Waits for one of the states; fails at once when the job has ended in another one."""

        def there() -> bool:
            now = self.state(job)
            if now in ENDED and now not in states:
                raise AssertionError(f"job {job} is {now}, not {states}; it wrote:\n{self.output(job)}")
            return now in states

        wait_until(f"job {job} in {' or '.join(states)} (is {self.state(job)})", there, seconds)
        return self.state(job)

    def wait_for_output(self, job: int, text: str, seconds: float = 60) -> float:
        return wait_until(f"{text!r} from job {job}", lambda: text in self.output(job), seconds)

    def accounted(self, job: int) -> list[str]:
        """The job's states by sacct, oldest first: a requeued job has a line for each start."""
        listed = command("sacct", "-n", "-P", "-X", "-D", "-j", str(job), "-o", "state").stdout
        return [line.split()[0] for line in listed.splitlines() if line]

    def clean(self) -> None:
        """No jobs, all links up, all nodes idle."""
        cancel_all()
        if not self.status()[0]:
            self.verb("up")
        wait_until("an empty queue", lambda: not queue(), 60)


def queue() -> list[str]:
    """The numbers of all jobs that wait, run or end."""
    return command("squeue", "--noheader", "--format=%A").stdout.split()


def cancel_all() -> None:
    """SIGKILL to what runs, because a job that ignores SIGTERM would stay for KillWait seconds."""
    for options in (("--full", "--signal=KILL", "--state=RUNNING"), ()):
        if jobs := queue():
            command("timeout", "10", "scancel", *options, *jobs, check=False)
