"""Hand validated command lines to a scheduler, for `sparface submit`."""

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
"""First line of the batch script. On a requeue the script must not end before its srun: an orphaned srun that
waits for a dead node would later end the next attempt's step, which has the same name."""
FOREVER = 60 * 24 * 365
"""Time limit of a local job without one, in minutes."""
UNITS = {"days": 24 * 60, "hours": 60, "minutes": 1}


@dataclass(frozen=True)
class Command:
    """The command of one job."""

    words: tuple[str, ...]
    """`sparface`'s arguments: a verb and its arguments, already validated."""
    out: Path | None = None
    """The folder that the verb writes, if any; shows progress."""
    spreads: bool = False
    """Whether several tasks can share the work."""


@dataclass(frozen=True)
class Resources:
    """Resources that a job requests; 0 and "" leave the choice to the cluster."""

    nodes: int | str = 1
    """`2`, or a range such as `1-2`; the number may change at a requeue."""
    gpus_per_node: int = 0
    """If set, one task runs per GPU."""
    tasks_per_node: int = 0
    cpus_per_task: int = 0
    mem: float = 0
    """GB per node."""
    partition: str = ""
    account: str = ""
    time: str = ""
    """Minutes, `H:MM:SS` or `D-HH:MM:SS`."""

    def __post_init__(self) -> None:
        """Raise `UserError` for values that no cluster accepts."""
        if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)?", str(self.nodes)):
            raise UserError(f"--nodes: {self.nodes} is not allowed; give a number or MIN-MAX")
        if self.gpus_per_node and self.tasks_per_node not in (0, self.gpus_per_node):
            raise UserError(
                f"--tasks-per-node: {self.tasks_per_node} is not allowed with --gpus-per-node, "
                "which runs one task per GPU; leave it out"
            )
        if not 0 <= self.mem < math.inf:
            raise UserError(
                f"--mem: {self.mem} is not allowed; give gigabytes, or 0 for the cluster's default"
            )
        minutes(self.time)

    @property
    def most_nodes(self) -> int:
        return int(str(self.nodes).split("-")[-1])

    @property
    def processes(self) -> range:
        """The numbers of processes that the job may run with."""
        least = int(str(self.nodes).split("-")[0])
        return range(least * self.tasks, self.most_nodes * self.tasks + 1, self.tasks)

    @property
    def tasks(self) -> int:
        """Number of tasks on each node."""
        return self.gpus_per_node or self.tasks_per_node or 1


@dataclass(frozen=True)
class Submission:
    """A submitted job: its ids, one per array task, and its log folder."""

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
    """Submit the commands as one array, to start when the jobs `after` have succeeded.

    A failed attempt is repeated, at most `retries` times without progress in between. With the cluster
    `debug` the jobs run in this process before this function returns, and may raise `SystemExit`.
    Raises `UserError` if the cluster refuses the jobs.
    """
    name = name or commands[0].words[0]
    require_words(name=name, partition=resources.partition, account=resources.account)
    require_words(**{f"after {job}": job for job in after})
    if not str(logs.absolute()).isprintable():
        raise UserError(f"--logs: {str(logs)!r} is not allowed; use printable characters only")
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
    """Raise `UserError` if several tasks are requested for a command that runs in one."""
    verb, tasks = command.words[0], resources.most_nodes * resources.tasks
    if tasks > 1 and not command.spreads:
        raise UserError(
            f"submit: {verb} runs in one task, not {tasks}; split its work with --array and {{task}}"
        )


def hand_over(tasks: list[Task], executor: submitit.Executor, cluster: Cluster) -> list[submitit.Job[None]]:
    """Queue the tasks. Raises `UserError` if they would never start."""
    try:
        with redirect_stderr(StringIO()):  # submitit also prints its error message
            jobs: list[submitit.Job[None]] = executor.submit_array(tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(refusal(str(error))) from None
    if cluster == "slurm":
        require_possible(str(jobs[0].job_id))
    return jobs


def described(job: submitit.Job[None], task: Task) -> dict[str, Any]:
    """Describe a queued task for the log folder."""
    words = [without_login(word) for word in task.command]
    return {"id": str(job.job_id), "command": words, "out": str(task.out or "")}


def require_words(**options: str) -> None:
    """Raise `UserError` for an option that is not a single word, safe in a path and in the batch script."""
    for option, value in options.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,+@-]{0,127}|", value):
            raise UserError(
                f"--{option}: {printable(value)!r} is not allowed; use letters, digits and _ . , + @ -"
            )


def repeated(command: Sequence[str], times: int) -> list[tuple[str, ...]]:
    """Return the commands of an array; `{task}` and `{tasks}` are replaced by index and count of tasks."""
    if times < 1:
        raise UserError(f"--array: {times} is not allowed; give the number of jobs, at least 1")
    return [
        tuple(word.replace("{task}", str(task)).replace("{tasks}", str(times)) for word in command)
        for task in range(times)
    ]


def minutes(limit: str) -> int:
    """Convert a SLURM time limit to minutes; `FOREVER` if empty."""
    if not limit:
        return FOREVER
    form = r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):(?P<minutes>\d\d):\d\d|(?P<only>\d+))"
    found = re.fullmatch(form, limit)
    if not found:
        raise UserError(f"--time: {limit} is not allowed; give minutes, H:MM:SS or D-HH:MM:SS")
    parts = {unit: int(found[unit] or 0) * size for unit, size in UNITS.items()}
    alone = int(found["only"] or 0) * UNITS["hours" if found["days"] else "minutes"]
    return sum(parts.values()) + alone


def slurm_executor(folder: Path, asked: Resources, name: str, after: Sequence[str]) -> submitit.Executor:
    """Return an executor whose jobs SLURM requeues and warns before the time limit; logs are appended."""
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: not found; submit on a machine with SLURM, or run here with --cluster local")
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
            "kill_on_invalid_dep": "yes",  # else jobs that depend on a failed one wait forever
            **tasks_options(asked),
        },
        **{key: value or None for key, value in wanted.items()},
    )
    return executor


def tasks_options(asked: Resources) -> dict[str, int]:
    """Return the sbatch options that request the tasks.

    For a range of nodes, request CPUs instead: SLURM would keep the number of tasks of the first attempt, and
    the job could not restart on fewer nodes.
    """
    if "-" in str(asked.nodes):
        return {"mincpus": asked.tasks * max(1, asked.cpus_per_task)}
    return {"ntasks-per-node": asked.tasks}


def step_options(asked: Resources) -> list[str]:
    """Return options to repeat for srun: since SLURM 22.05 it does not inherit sbatch's --cpus-per-task."""
    cpus = [f"--cpus-per-task={asked.cpus_per_task}"] if asked.cpus_per_task else []
    return [f"--ntasks-per-node={asked.tasks}", *cpus]


def local_executor(folder: Path, asked: Resources, name: str, after: Sequence[str]) -> submitit.Executor:
    """Return an executor that starts the tasks on this machine at once."""
    if after or asked.most_nodes > 1:
        raise UserError(f"--{'after' if after else 'nodes'}: not supported locally; use --cluster slurm")
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(
        tasks_per_node=asked.tasks, gpus_per_node=asked.gpus_per_node, timeout_min=minutes(asked.time)
    )
    return executor


def debug_executor(folder: Path, asked: Resources, name: str, after: Sequence[str]) -> submitit.Executor:
    """Return an executor whose jobs wait for `run_here`."""
    if after or asked.most_nodes > 1 or asked.tasks > 1:
        raise UserError("--cluster: debug runs one task in this process; ask for one task, without --after")
    return submitit.DebugExecutor(folder)


def run_here(job: submitit.Job[None]) -> None:
    """Run a debug job to its end. (Its `result()` would open a debugger on failure.)"""
    with environment_variables(SUBMITIT_DEBUG_JOB_ID=job.job_id):
        if error := job.exception():
            raise error


def require_possible(job: str) -> None:
    """Cancel a job that SLURM accepted but will never start, and raise `UserError` with the reason."""
    reason = slurm.reason(job)
    if reason.startswith("Partition") and reason not in ("PartitionDown", "PartitionInactive"):
        slurm.cancel(job.split("_")[0])
        raise UserError(
            refusal(f"it would never start ({reason}: more time or nodes than the partition allows)")
        )


def refusal(text: str) -> str:
    """Format sbatch's reason in one line, with the available partitions."""
    reasons = re.findall(r"sbatch: error: (.*)", text) or text.strip().splitlines()[-1:]
    known = slurm.partitions()
    return (
        "SLURM refused the job: " + "; ".join(reasons) + (f"; available partitions: {known}" if known else "")
    )


def describe(submission: Submission, cluster: Cluster) -> str:
    """Describe a submission: its jobs, its logs, and the commands to watch and stop it."""
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
