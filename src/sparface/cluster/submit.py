"""What `sparface submit` does with command lines that were checked: hand them to a scheduler."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, environment_variables

from sparface.cluster import slurm
from sparface.cluster.folder import JobFolder
from sparface.cluster.job import Task
from sparface.errors import UserError
from sparface.text import printable, without_login

Cluster = Literal["slurm", "local", "debug"]
WARNING = 120
"""Seconds before the time limit at which the job is asked to save."""
STAY = "trap : TERM"
"""First line of the batch script. At a requeue it must not end before its srun: one that is left behind,
waiting for a dead node, would after a while end the step of the next attempt, which has the same name."""
FOREVER = 60 * 24 * 365
"""Minutes: the time limit of a local job without one."""
UNITS = {"days": 24 * 60, "hours": 60, "minutes": 1}


@dataclass(frozen=True)
class Command:
    """What one job runs."""

    words: tuple[str, ...]
    """`sparface`'s arguments: a verb and its own. Whoever makes this has checked them."""
    out: Path | None = None
    """The folder that the verb writes, if it writes one: what shows progress."""
    spreads: bool = False
    """Whether several tasks share the work; else it is for one."""


@dataclass(frozen=True)
class Resources:
    """What a job asks for; 0 and "" leave it to the cluster."""

    nodes: int | str = 1
    """`2`, or `1-2` for any number in between, also after a requeue."""
    gpus_per_node: int = 0
    """With it, one task per GPU."""
    tasks_per_node: int = 0
    cpus_per_task: int = 0
    mem: float = 0
    """GB a node."""
    partition: str = ""
    account: str = ""
    time: str = ""
    """Minutes, `H:MM:SS` or `D-HH:MM:SS`."""

    def __post_init__(self) -> None:
        """Raise `UserError` for what no cluster could make sense of."""
        if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)?", str(self.nodes)):
            raise UserError(f"--nodes {self.nodes}: give a number, or MIN-MAX")
        if self.gpus_per_node and self.tasks_per_node not in (0, self.gpus_per_node):
            raise UserError(f"--tasks-per-node {self.tasks_per_node}: every GPU gets one task; leave it out")
        if not 0 <= self.mem < math.inf:
            raise UserError(f"--mem {self.mem}: give gigabytes, or 0 for the cluster's default")
        minutes(self.time)

    @property
    def most_nodes(self) -> int:
        return int(str(self.nodes).split("-")[-1])

    @property
    def tasks(self) -> int:
        """Tasks on each node."""
        return self.gpus_per_node or self.tasks_per_node or 1


@dataclass(frozen=True)
class Submission:
    """A submitted job: its id (of each array task) and its log folder."""

    ids: tuple[str, ...]
    folder: Path


def submit(
    commands: Sequence[Command],
    resources: Resources,
    *,
    cluster: Cluster = "slurm",
    name: str = "",
    logs: Path = Path("jobs"),
    after: Sequence[str] = (),
    retries: int = 3,
) -> Submission:
    """Submit the commands as one array, to start after the jobs `after` ended well.

    A failed attempt is followed by another, at most `retries` times without progress in between. With
    `debug` the jobs have run when this returns, in this process, whose `SystemExit` it may be.
    Raises `UserError` for what the cluster refuses.
    """
    name = name or commands[0].words[0]
    require_words(name=name, partition=resources.partition, account=resources.account)
    require_words(**{f"after {job}": job for job in after})
    if not str(logs.absolute()).isprintable():
        raise UserError(f"--logs {logs}: has characters that a batch script cannot hold")
    for command in commands:
        require_tasks(command, resources)
    executor_of = {"slurm": slurm_executor, "local": local_executor, "debug": debug_executor}[cluster]
    folder = JobFolder.new(logs, name)
    tasks = [Task(command.words, folder, command.out, retries, i) for i, command in enumerate(commands)]
    try:
        jobs = hand_over(tasks, executor_of(folder.path, resources, name, after), cluster)
    except UserError:
        shutil.rmtree(folder.path)
        raise
    folder.describe(name=name, cluster=cluster, tasks=list(map(described, jobs, tasks)))
    if cluster == "debug":
        for job in jobs:
            run_here(job)
    return Submission(tuple(str(job.job_id) for job in jobs), folder.path)


def require_tasks(command: Command, resources: Resources) -> None:
    """Raise `UserError` for several tasks where the command's work is for one."""
    verb, tasks = command.words[0], resources.most_nodes * resources.tasks
    if tasks > 1 and not command.spreads:
        raise UserError(
            f"submit: {verb} runs in one task, not {tasks}; split its work with --array and {{task}}"
        )


def hand_over(tasks: list[Task], executor: submitit.Executor, cluster: Cluster) -> list[submitit.Job[None]]:
    """Queue the tasks. Raises `UserError` where they would never start."""
    try:
        with redirect_stderr(StringIO()):  # submitit prints what its error says again
            jobs: list[submitit.Job[None]] = executor.submit_array(tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(refusal(str(error))) from None
    if cluster == "slurm":
        require_possible(str(jobs[0].job_id))
    return jobs


def described(job: submitit.Job[None], task: Task) -> dict[str, Any]:
    """A queued task as the log folder tells of it."""
    words = [without_login(word) for word in task.command]
    return {"id": str(job.job_id), "command": words, "out": str(task.out or "")}


def require_words(**options: str) -> None:
    """Raise `UserError` for an option that would not stay one word in a path or in the batch script."""
    for option, value in options.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,+@-]{0,127}|", value):
            raise UserError(
                f"--{option}: {printable(value)!r} is not allowed; use letters, digits and _ . , + @ -"
            )


def repeated(command: Sequence[str], times: int) -> list[tuple[str, ...]]:
    """The commands of an array: `{task}` and `{tasks}` in an argument become its number and their count."""
    if times < 1:
        raise UserError(f"--array {times}: give the number of jobs, at least 1")
    return [
        tuple(word.replace("{task}", str(task)).replace("{tasks}", str(times)) for word in command)
        for task in range(times)
    ]


def minutes(limit: str) -> int:
    """A time limit in minutes, as SLURM reads it; `FOREVER` for none."""
    if not limit:
        return FOREVER
    form = r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):(?P<minutes>\d\d):\d\d|(?P<only>\d+))"
    found = re.fullmatch(form, limit)
    if not found:
        raise UserError(f"--time {limit}: give minutes, H:MM:SS, or D-HH:MM:SS")
    parts = {unit: int(found[unit] or 0) * size for unit, size in UNITS.items()}
    alone = int(found["only"] or 0) * UNITS["hours" if found["days"] else "minutes"]
    return sum(parts.values()) + alone


def slurm_executor(folder: Path, asked: Resources, name: str, after: Sequence[str]) -> submitit.Executor:
    """An executor whose jobs SLURM requeues, warns before their time limit, and appends the logs of."""
    if shutil.which("sbatch") is None:
        raise UserError("sbatch not found: submit where SLURM is, or run here with --cluster local")
    executor = submitit.SlurmExecutor(folder)
    wanted: dict[str, Any] = {
        "partition": asked.partition,
        "account": asked.account,
        "time": asked.time,
        "mem": f"{round(asked.mem * 1024)}M" if asked.mem else None,
        "gpus_per_node": asked.gpus_per_node,
        "cpus_per_task": asked.cpus_per_task,
        "dependency": "afterok:" + ":".join(after) if after else None,
    }
    executor.update_parameters(
        job_name=name,
        setup=[STAY],
        signal_delay_s=min(WARNING, 60 * minutes(asked.time) // 4),
        srun_args=["--open-mode=append", *step_options(asked)],
        wckey=None,
        additional_parameters={
            "requeue": True,
            "nodes": asked.nodes,
            "kill_on_invalid_dep": "yes",  # else what waits for a failed job waits for ever
            **tasks_options(asked),
        },
        **{key: value or None for key, value in wanted.items()},
    )
    return executor


def tasks_options(asked: Resources) -> dict[str, int]:
    """How sbatch is told of the tasks.

    With a range of nodes by their CPUs: a job that said tasks keeps the number that it once ran with,
    and could not come back on fewer nodes.
    """
    if "-" in str(asked.nodes):
        return {"mincpus": asked.tasks * max(1, asked.cpus_per_task)}
    return {"ntasks-per-node": asked.tasks}


def step_options(asked: Resources) -> list[str]:
    """What srun must be told again: since SLURM 22.05 it does not take over sbatch's --cpus-per-task."""
    cpus = [f"--cpus-per-task={asked.cpus_per_task}"] if asked.cpus_per_task else []
    return [f"--ntasks-per-node={asked.tasks}", *cpus]


def local_executor(folder: Path, asked: Resources, name: str, after: Sequence[str]) -> submitit.Executor:
    """An executor that starts the tasks on this machine, at once."""
    if after or asked.most_nodes > 1:
        raise UserError(f"--{'after' if after else 'nodes'}: needs --cluster slurm")
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(
        tasks_per_node=asked.tasks, gpus_per_node=asked.gpus_per_node, timeout_min=minutes(asked.time)
    )
    return executor


def debug_executor(folder: Path, asked: Resources, name: str, after: Sequence[str]) -> submitit.Executor:
    """An executor whose jobs wait for `run_here`."""
    if after or asked.most_nodes > 1 or asked.tasks > 1:
        raise UserError("--cluster debug: runs one task in this process, after nothing")
    return submitit.DebugExecutor(folder)


def run_here(job: submitit.Job[None]) -> None:
    """Run a debug job to its end. (Its own `result()` would open a debugger on a failure.)"""
    with environment_variables(SUBMITIT_DEBUG_JOB_ID=job.job_id):
        if error := job.exception():
            raise error


def require_possible(job: str) -> None:
    """Cancel a job that SLURM took but will never start, and raise a `UserError` that says why."""
    reason = slurm.reason(job)
    if reason.startswith("Partition") and reason not in ("PartitionDown", "PartitionInactive"):
        slurm.cancel(job.split("_")[0])
        raise UserError(
            refusal(f"it would never start ({reason}: more time or nodes than its partition gives)")
        )


def refusal(text: str) -> str:
    """sbatch's own reason in one line, and what could be asked for instead."""
    reasons = re.findall(r"sbatch: error: (.*)", text) or text.strip().splitlines()[-1:]
    known = slurm.partitions()
    return "SLURM refuses the job: " + "; ".join(reasons) + (f". There is {known}" if known else "")


def describe(submission: Submission, cluster: Cluster) -> str:
    """What was submitted, where it tells of itself, and what to type next."""
    ids, folder = submission.ids, os.path.relpath(submission.folder)
    stop = {"slurm": f"scancel {ids[0].split('_')[0]}", "local": f"kill {' '.join(ids)}"}
    return "\n".join(
        [
            f"job    {ids[0]}" + (f" to {ids[-1]}" if len(ids) > 1 else ""),
            f"logs   {folder}/{ids[0]}_0_log.out",
            f"watch  sparface jobs {os.path.dirname(folder)}",
            *([f"stop   {stop[cluster]}"] if cluster in stop else []),
        ]
    )
