"""The supervisor that every task of a job runs: it starts the verb as a child process and acts on its exit.

Training knows nothing of schedulers beyond stop requests and its exit code. The supervisor knows nothing of
training beyond the exit code and the newest checkpoint's name. It keeps no essential state in memory: after
a requeue, everything is found on disk.
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
from sparface.machine import STOP_SIGNALS, handling_stop_signals

End = Literal["done", "refused", "failed", "stopped"]
FINAL_SIGNALS = {"SIGTERM", "SIGINT"}
"""Without a scheduler these two signals mean "end"; the others mean "save and continue"."""
LOOK = 1.0
"""Seconds between checks of the other tasks' records."""
SETTLE: dict[End, float] = {"refused": 0, "failed": 3, "stopped": 30}
"""Seconds to wait for the other tasks before acting. They may know the cause (a user error on one rank
appears as a lost connection on the others), or may still be saving."""
PAUSE = 5.0
"""Seconds between attempts to reach SLURM."""
REFUSED = 60.0
"""Seconds of refused requeues before the job, which occupies its nodes, gives up."""
SILENT = 30 * 60.0
"""Seconds without an answer from SLURM before the job gives up; a controller may be restarting."""
PORTS = range(10000, 32768)
"""Rendezvous ports, below the system's ephemeral ports."""
CHECKPOINT = re.compile(r"step-([0-9]+)")
"""Name of a checkpoint; the number is images seen."""
RESTARTS = "SPARFACE_RESTARTS"
"""Environment variable: number of restarts of this job; if above 0, the last attempt may still be exiting."""


def meaning(code: int) -> End:
    """Interpret an exit code of `sparface` (negative: killed by that signal)."""
    if code == 0:
        return "done"
    if code == 2:
        return "refused"
    # a child killed by a stop signal before it installed its handlers has nothing to save
    return "stopped" if code == STOPPED_EARLY or -code in STOP_SIGNALS else "failed"


def worst(codes: Iterable[int]) -> End:
    """Combine the exit codes of all tasks of an attempt into the most severe outcome."""
    ends = {meaning(code) for code in codes}
    order: tuple[End, ...] = ("refused", "failed", "stopped")
    return next((end for end in order if end in ends), "done")


@dataclass(frozen=True)
class Place:
    """A task's rank among the tasks of its job, and the attempt."""

    job: str
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    hosts: tuple[str, ...] = ("127.0.0.1",)
    attempt: int = 0
    scheduled: bool = False
    """Whether SLURM runs the job and therefore restarts it."""

    @classmethod
    def here(cls) -> Place:
        """Read the place from submitit's environment."""
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
        """Return torchrun's environment variables and the number of restarts."""
        # hash the port, so that concurrent jobs rarely collide and every attempt gets another one: a port
        # in use, by another job or a process that is still exiting, costs one attempt
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
    """A task of a job, which submitit pickles and calls in every process."""

    command: tuple[str, ...]
    """`sparface`'s arguments: the verb and its own."""
    folder: JobFolder
    out: Path | None
    """The folder that the verb writes, if any; shows progress."""
    retries: int
    """Maximum number of consecutive failures without progress before giving up."""
    number: int = 0
    """Index in the array."""

    def __call__(self) -> None:
        """Run the verb until it is done, over several attempts if needed; else exit like `sparface`."""
        place = Place.here()
        end_when_asked()
        while (end := self.attempt(place)) != "done":
            if end == "refused":
                sys.exit(2)
            if (failures := self.failures(place)) > self.retries:
                give_up(place, f"{failures} consecutive attempts failed without progress")
            if place.scheduled:
                await_requeue(place)
            if end == "stopped" and self.signals(place) & FINAL_SIGNALS:
                sys.exit(STOPPED_EARLY)
            place = replace(place, attempt=place.attempt + 1)

    def attempt(self, place: Place) -> End:
        """Run the child once, and agree with the other tasks on the outcome."""
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
        """Wait until all tasks have recorded their child's end, at most `patience` seconds."""
        deadline = time.monotonic() + patience
        while len(self.ends(place)) < place.world_size and time.monotonic() < deadline:
            time.sleep(LOOK / 4)

    def note(self, place: Place, **facts: object) -> None:
        """Record facts for the other tasks.

        A folder that cannot be written, for example on a full disk, must not end the supervisor, since
        nothing else would request a restart.
        """
        where = {"rank": place.rank, "host": socket.gethostname(), "pid": os.getpid()}
        try:
            self.folder.note(task=self.number, attempt=place.attempt, **where, **facts)
        except (OSError, UserError) as error:
            say(place, f"cannot write to {self.folder.path} ({error})")

    def ends(self, place: Place) -> list[Record]:
        """Return the tasks' records of their child's end in this attempt."""
        return [r for r in self.all_ends() if r["attempt"] == place.attempt]

    def all_ends(self) -> list[Record]:
        return [r for r in self.folder.attempts(self.number) if r["event"] == "end"]

    def lost(self, place: Place) -> bool:
        """Whether another task's child has failed, so that this one would wait for it in vain."""
        if place.world_size == 1:
            return False
        return any(meaning(record["code"]) in ("failed", "refused") for record in self.ends(place))

    def signals(self, place: Place) -> set[str]:
        return {record["signal"] for record in self.ends(place)}

    def failures(self, place: Place) -> int:
        """Count consecutive failures: attempts that ended unasked at the run's current progress."""
        ends, now = self.all_ends(), progress(self.out)
        asked = {r["attempt"] for r in ends if r["signal"]}
        ended = {r["attempt"] for r in ends if r["progress"] == now and meaning(r["code"]) != "done"}
        return len(ended - asked)


def progress(out: Path | None) -> int:
    """Return the images seen in a run's newest checkpoint, or the number of finished shards of a set.

    Returns 0 before the first one, and if the folder cannot be read.
    """
    if out is None:
        return 0
    try:
        return max(checkpoints(out), default=sum(1 for _ in out.glob("*.tar")))
    except OSError:
        return 0


def checkpoints(run: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by images seen, ignoring other files, such as copies by the user."""
    named = [(CHECKPOINT.fullmatch(path.name), path) for path in run.glob("checkpoints/step-*")]
    return {int(match[1]): path for match, path in named if match}


def run_child(command: list[str], environment: dict[str, str], lost: Callable[[], bool]) -> tuple[int, str]:
    """Run a command and forward stop signals to it. Kills it if `lost` returns True.

    Returns its exit code (negative: killed by that signal) and the last forwarded signal, or "".
    """
    with forwarding() as forward:
        # in a new session, Ctrl-C reaches the child only once, forwarded from here
        child = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent)
        forward.to(child)
        while True:
            try:
                return child.wait(LOOK), forward.asked
            except subprocess.TimeoutExpired:
                if lost():
                    child.kill()


class Forward:
    """A signal handler that forwards stop signals to a child."""

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
            # training treats a second SIGINT as "stop at once", and SLURM has already sent the first one
            self.child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)


@contextmanager
def forwarding() -> Iterator[Forward]:
    """Context manager: forward stop signals while a child runs."""
    forward = Forward()
    with handling_stop_signals(forward):
        yield forward


def end_when_asked() -> None:
    """Let stop signals end this process between two children, when there is nothing to save.

    Replaces submitit's handlers, which would ignore SIGTERM.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its supervisor dies, as nothing would record its end."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def await_requeue(place: Place) -> NoReturn:
    """Ask SLURM to requeue the job, which ends this process; exit 75 if SLURM has already ended the attempt.

    Any task may call this at any time, as only a job that SLURM considers running in this attempt is
    requeued. A cancelled job stays cancelled; one that SLURM requeued itself (preemption, lost node) is not
    requeued twice; a task on a node that cannot reach SLURM leaves it to the others. Exits 1 if SLURM keeps
    refusing or does not answer, so that the job does not occupy its nodes for nothing.
    """
    ours = slurm.Life("RUNNING", place.attempt)
    heard, asked = time.monotonic(), None
    while (life := slurm.life(place.job)) in (ours, None):
        now = time.monotonic()
        if life is None and now - heard > SILENT:
            give_up(place, f"SLURM has not answered for {SILENT / 60:.0f} minutes")
        if life == ours:
            heard, asked = now, now if asked is None else asked
            say(place, "requesting a restart")
            refusal = slurm.requeue(place.job)
            if now - asked > REFUSED:
                give_up(place, f"SLURM does not requeue the job ({refusal or 'no reason given'})")
        time.sleep(PAUSE)
    sys.exit(STOPPED_EARLY)


def give_up(place: Place, reason: str) -> NoReturn:
    say(place, f"giving up: {reason}; submit it again to resume from the last checkpoint")
    sys.exit(1)


def say(place: Place, text: str) -> None:
    print(
        f"sparface: job {place.job}, attempt {place.attempt}, task {place.rank}: {text}",
        file=sys.stderr,
        flush=True,
    )
