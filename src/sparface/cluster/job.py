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
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from sparface.cluster import slurm
from sparface.cluster.folder import JobFolder, Record
from sparface.errors import STOPPED_EARLY, UserError

End = Literal["done", "refused", "failed", "stopped"]
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
REFUSED = 60.0
"""Seconds in which SLURM may refuse a requeue before the job, which holds its nodes, gives up."""
SILENT = 30 * 60.0
"""Seconds without an answer before it gives up: a controller may be restarted, or a link be down."""
PORTS = range(10000, 32768)
"""Where the processes may meet: below the ports that the system hands out."""
CHECKPOINT = re.compile(r"step-([0-9]+)")
"""Name of a run's checkpoint; the number is images seen."""
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
        # hashed, so that jobs side by side rarely meet, and another one in every attempt: a port that is
        # taken, by another job or by a process that is still dying, costs one attempt
        number = zlib.crc32(f"{self.job} {self.attempt}".encode())
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.hosts[0],
            "MASTER_PORT": str(PORTS[number % len(PORTS)]),
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
                give_up(place, f"{failures} attempts in a row failed without progress")
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
        return worst([code, *(record["code"] for record in self.ends(place))])

    def settle(self, place: Place, patience: float) -> None:
        """Wait until all tasks have noted their child's end, but not for ever."""
        deadline = time.monotonic() + patience
        while len(self.ends(place)) < place.world_size and time.monotonic() < deadline:
            time.sleep(LOOK / 4)

    def note(self, place: Place, **facts: object) -> None:
        """Tell the other tasks. A folder that cannot be written, such as on a full disk, must not end the
        supervisor: without it nobody asks for another start."""
        where = {"rank": place.rank, "host": socket.gethostname(), "pid": os.getpid()}
        try:
            self.folder.note(task=self.number, attempt=place.attempt, **where, **facts)
        except (OSError, UserError) as error:
            say(place, f"cannot write to {self.folder.path} ({error})")

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
    """Images seen in the newest checkpoint of a run, or finished shards of a set; 0 before the first, and
    where the folder cannot be read."""
    if out is None:
        return 0
    try:
        return max(checkpoints(out), default=sum(1 for _ in out.glob("*.tar")))
    except OSError:
        return 0


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by images seen. Whatever else lies between them, such as a copy that somebody
    has set aside, is left alone."""
    named = [(CHECKPOINT.fullmatch(path.name), path) for path in run.glob("checkpoints/step-*")]
    return {int(match[1]): path for match, path in named if match}


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
    Exits 1 when SLURM keeps refusing, or keeps silent: the job must not hold its nodes for nothing.
    """
    ours = slurm.Life("RUNNING", place.attempt)
    heard, asked = time.monotonic(), None
    while (life := slurm.life(place.job)) in (ours, None):
        now = time.monotonic()
        if life is None and now - heard > SILENT:
            give_up(place, f"SLURM has not answered for {SILENT / 60:.0f} minutes")
        if life == ours:
            heard, asked = now, now if asked is None else asked
            say(place, "asks for another start")
            refusal = slurm.requeue(place.job)
            if now - asked > REFUSED:
                give_up(place, f"SLURM does not put the job back into the queue ({refusal or 'no reason'})")
        time.sleep(PAUSE)
    sys.exit(STOPPED_EARLY)


def give_up(place: Place, reason: str) -> NoReturn:
    say(place, f"giving up: {reason}; submit it again to go on from the last checkpoint")
    sys.exit(1)


def say(place: Place, text: str) -> None:
    print(
        f"sparface: job {place.job}, attempt {place.attempt}, task {place.rank}: {text}",
        file=sys.stderr,
        flush=True,
    )
