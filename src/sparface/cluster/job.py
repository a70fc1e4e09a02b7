"""What every task of a job runs: a supervisor that starts the verb as a child and decides what its end means.

The trainer knows nothing of schedulers beyond "please stop now" and its exit code; the supervisor
knows nothing of training beyond that code and the newest checkpoint's name. It holds no state that
matters: after a requeue all is found again on disk.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from sparface.cluster import slurm
from sparface.cluster.folder import JobFolder, Record

End = Literal["done", "refused", "failed", "stopped"]
STOPPED_EARLY = 75
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
FINAL_SIGNALS = {"SIGTERM", "SIGINT"}
"""Without a scheduler these two mean "end"; the others mean "save and go on"."""
LOOK = 1.0
"""Seconds between two looks at what the other tasks have noted."""
SETTLE: dict[End, float] = {"refused": 0, "failed": 3, "stopped": 30}
"""Seconds to wait for the other tasks before acting: they may know the cause (a mistake of the user's
on one rank looks like a lost connection on all others), or still be saving."""
PAUSE = 5.0
"""Seconds between two attempts to reach SLURM."""
RESTARTS = "SPARFACE_RESTARTS"
"""Environment variable: how often this job was started again; above 0 its predecessor may still be dying."""


def meaning(code: int) -> End:
    """What an exit code of `sparface` (negative: killed by that signal) says."""
    if code == 0:
        return "done"
    if code == 2:
        return "refused"
    # a child that was asked to stop before it could listen has nothing to save
    return "stopped" if code == STOPPED_EARLY or -code in STOP_SIGNALS else "failed"


def worst(codes: Iterable[int]) -> End:
    """What the ends of all tasks of an attempt mean together."""
    ends = {meaning(code) for code in codes}
    order: tuple[End, ...] = ("refused", "failed", "stopped")
    return next((end for end in order if end in ends), "done")


@dataclass(frozen=True)
class Place:
    """Where a task stands among the tasks of its job, and in which attempt."""

    job: str
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    hosts: tuple[str, ...] = ("127.0.0.1",)
    attempt: int = 0
    scheduled: bool = False
    """Whether SLURM runs the job, so that starting again is its business."""

    @classmethod
    def here(cls) -> Place:
        """The place that submitit's environment describes."""
        from submitit import JobEnvironment

        env = JobEnvironment()
        scheduled = env.cluster == "slurm"
        return cls(
            job=env.job_id,
            rank=env.global_rank,
            world_size=env.num_tasks,
            local_rank=env.local_rank,
            local_size=env.num_tasks // env.num_nodes,
            hosts=tuple(env.hostnames) if scheduled else ("127.0.0.1",),
            attempt=int(os.environ.get("SLURM_RESTART_COUNT", "0")) if scheduled else 0,
            scheduled=scheduled,
        )

    def environment(self) -> dict[str, str]:
        """torchrun's variables, and how often the job was started again."""
        # another port in every attempt: the one before may still be held by a dying process
        number = 100 * int(re.sub(r"\D", "", self.job) or 0) + self.attempt
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.hosts[0],
            "MASTER_PORT": str(15000 + number % 15000),  # below the ports that the system hands out
            RESTARTS: str(self.attempt),
        }


@dataclass(frozen=True)
class Task:
    """One task of a job, as submitit calls it in every process. Pickled; only the command matters."""

    command: tuple[str, ...]
    """`sparface`'s arguments: the verb and its own."""
    folder: JobFolder
    out: Path | None
    """Where the verb writes, if it writes a folder: what shows progress."""
    retries: int
    """How many failures in a row without progress are followed by another attempt."""
    number: int = 0
    """Of the array."""

    def __call__(self) -> None:
        """Run the verb to its end, over as many attempts as it takes; else exit as `sparface` does."""
        place = Place.here()
        end_when_asked()
        while (end := self.attempt(place)) != "done":
            if end == "refused":
                sys.exit(2)
            if (failures := self.failures(place)) > self.retries:
                say(place, f"giving up: {failures} attempts in a row failed without progress")
                sys.exit(1)
            if place.scheduled:
                await_requeue(place)
            if end == "stopped" and self.signals(place) & FINAL_SIGNALS:
                sys.exit(STOPPED_EARLY)
            place = replace(place, attempt=place.attempt + 1)

    def attempt(self, place: Place) -> End:
        """Run the child once, and agree with the other tasks on what its end means."""
        if place.rank == 0:
            self.note(place, event="start", hosts=place.hosts, tasks=place.world_size)
        command = [sys.executable, "-m", "sparface", *self.command]
        code, asked = run_child(command, os.environ | place.environment(), lambda: self.lost(place))
        self.note(place, event="end", code=code, signal=asked, progress=progress(self.out))
        if meaning(code) == "done":
            return "done"
        self.settle(place, SETTLE[meaning(code)])
        return worst(record["code"] for record in self.ends(place))

    def settle(self, place: Place, patience: float) -> None:
        """Wait until all tasks have noted their child's end, but not for ever."""
        deadline = time.monotonic() + patience
        while len(self.ends(place)) < place.world_size and time.monotonic() < deadline:
            time.sleep(LOOK / 4)

    def note(self, place: Place, **facts: object) -> None:
        self.folder.note(
            task=self.number,
            attempt=place.attempt,
            rank=place.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            **facts,
        )

    def ends(self, place: Place) -> list[Record]:
        """What the tasks have noted at their child's end in this attempt."""
        return [r for r in self.all_ends() if r["attempt"] == place.attempt]

    def all_ends(self) -> list[Record]:
        return [r for r in self.folder.attempts(self.number) if r["event"] == "end"]

    def lost(self, place: Place) -> bool:
        """Whether another task's child is gone for good, so that this one waits for it in vain."""
        if place.world_size == 1:
            return False
        return any(meaning(record["code"]) in ("failed", "refused") for record in self.ends(place))

    def signals(self, place: Place) -> set[str]:
        return {record["signal"] for record in self.ends(place)}

    def failures(self, place: Place) -> int:
        """Attempts that ended, without anybody asking, where the run still stands: its failures in a row."""
        ends, now = self.all_ends(), progress(self.out)
        asked = {r["attempt"] for r in ends if r["signal"]}
        ended = {r["attempt"] for r in ends if r["progress"] == now and meaning(r["code"]) != "done"}
        return len(ended - asked)


def progress(out: Path | None) -> int:
    """Images seen in the newest checkpoint of a run, or finished shards of a set; 0 before the first."""
    if out is None:
        return 0
    steps = [int(path.name.removeprefix("step-")) for path in out.glob("checkpoints/step-*")]
    return max(steps, default=sum(1 for _ in out.glob("*.tar")))


def run_child(command: list[str], environment: dict[str, str], lost: Callable[[], bool]) -> tuple[int, str]:
    """Run a command, passing on the signals that ask to stop, until it ends or is `lost` and killed.

    Returns its exit code (negative: the signal that killed it) and the last signal passed on, or "".
    """
    with forwarding() as forward:
        # its own session: Ctrl-C reaches it once, through here
        child = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent)
        forward.to(child)
        while True:
            try:
                return child.wait(LOOK), forward.asked
            except subprocess.TimeoutExpired:
                if lost():
                    child.kill()


class Forward:
    """A signal handler that passes requests to stop on to a child."""

    def __init__(self) -> None:
        self.asked = ""
        self.child: subprocess.Popen[bytes] | None = None

    def to(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        if self.asked:
            self(signal.Signals[self.asked], None)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        if self.child is not None:
            # the trainer takes a second SIGINT for "at once", and SLURM has sent it the first one already
            self.child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)


@contextmanager
def forwarding() -> Iterator[Forward]:
    """Handle the requests to stop while a child runs."""
    forward = Forward()
    previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield forward
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_when_asked() -> None:
    """Between two children there is nothing to save. (Submitit's handlers would swallow a SIGTERM.)"""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its supervisor is gone, which could not tell of its end."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def await_requeue(place: Place) -> NoReturn:
    """Give the job back to SLURM, which ends this process; exit 75 if the job is no longer this one's.

    Any task may do it, at any time: only a job that SLURM takes for running, and in this very
    attempt, is requeued. One that was cancelled stays so; one that SLURM requeued itself (preemption,
    lost node) is not requeued twice; and a task on a node that can't reach SLURM leaves it to others.
    """
    ours = slurm.Life("RUNNING", place.attempt)
    while (life := slurm.life(place.job)) in (ours, None):
        if life == ours:
            say(place, "asks for another start")
            slurm.requeue(place.job)
        time.sleep(PAUSE)
    sys.exit(STOPPED_EARLY)


def say(place: Place, text: str) -> None:
    print(
        f"sparface: job {place.job}, attempt {place.attempt}, task {place.rank}: {text}",
        file=sys.stderr,
        flush=True,
    )
