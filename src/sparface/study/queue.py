"""Queue the parts of a study as SLURM jobs that wait for each other."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

from sparface.cluster import Command, Resources, slurm, submit
from sparface.errors import UserError
from sparface.files import inside, read_bounded, write_whole
from sparface.forms import fits, parsed
from sparface.study.folder import MAX_BYTES, StudyFolder
from sparface.study.plan import REPORT, Part

JOBS_FILE, JOB = "jobs.json", re.compile("[0-9]+(_[0-9]+)?")
ACTIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED", "PREEMPTED")
"""States of an unfinished job."""
SPREADING = ("train", "generate", "attack", "purify")
"""Verbs that get all of the resources; the others run in one task."""


def queue(folder: StudyFolder, resources: Resources, retries: int) -> None:
    """Submit the missing parts and, after them, the report; prints the state of each part.

    Parts that are queued or running are left alone. Raises `UserError` if the cluster refuses the jobs.
    """
    known = _known(folder)
    states = slurm.states(known.values())
    jobs = {name: job for name, job in known.items() if states.get(job, "").split(" ")[0] in ACTIVE}
    missing, done = [], folder.done()
    for part in folder.plan.parts.values():
        if part.name in done:
            print(f"finished   {part.name}")
        elif part.name in jobs:
            print(f"job {jobs[part.name]} {states[jobs[part.name]].lower()}  {part.name}")
        else:
            missing.append(part)
    for group in together(missing):
        _submit(folder, group, resources, retries, jobs)
    if missing:
        _report(folder, resources, sorted({jobs[name] for name in jobs if name != REPORT}))
    print(f"watch   sparface jobs {folder.path / 'jobs'}\nreport  {folder.path / 'report.html'}")


def together(parts: Sequence[Part]) -> list[list[Part]]:
    """Group parts with the same verb and the same needs into arrays."""
    groups: dict[tuple[str, ...], list[Part]] = {}
    for part in parts:
        groups.setdefault((part.words[0], *part.needs), []).append(part)
    return list(groups.values())


def _submit(
    folder: StudyFolder, group: list[Part], resources: Resources, retries: int, jobs: dict[str, str]
) -> None:
    """Submit an array, and add its jobs to `jobs` and to the folder's record."""
    spreads = group[0].words[0] in SPREADING
    after = sorted({jobs[need] for part in group for need in part.needs if need in jobs})
    commands = [_command(folder, part, spreads) for part in group]
    asked = resources if spreads else one_task(resources)
    name = group[0].words[0]
    done = submit(commands, asked, name=name, logs=folder.path / "jobs", after=after, retries=retries)
    for part, job in zip(group, done.ids, strict=True):
        jobs[part.name] = job
        print(f"job {job} submitted  {part.name}")
    _keep(folder, jobs)


def _command(folder: StudyFolder, part: Part, spreads: bool) -> Command:
    words = ("study", str(folder.resolved), "--part", part.name)
    return Command(words, part.out if spreads else None, spreads)


def _report(folder: StudyFolder, resources: Resources, after: Sequence[str]) -> None:
    """Submit the job that reports when all others have succeeded."""
    command = Command(("study", str(folder.resolved), "--part", REPORT))
    done = submit([command], one_task(resources), name=REPORT, logs=folder.path / "jobs", after=after)
    _keep(folder, {REPORT: done.ids[0]})
    print(f"job {done.ids[0]} submitted  {REPORT}")


def one_task(resources: Resources) -> Resources:
    """Return the resources of a part that runs in one process."""
    return dataclasses.replace(
        resources, nodes=1, tasks_per_node=0, gpus_per_node=min(1, resources.gpus_per_node)
    )


def _known(folder: StudyFolder) -> dict[str, str]:
    """Return the latest job of each part."""
    if not (folder.path / JOBS_FILE).exists():
        return {}
    file = inside(folder.path, JOBS_FILE)
    found = parsed(read_bounded(file, MAX_BYTES))
    if not fits(found, {str: JOB}):
        raise UserError(f"{file}: is damaged; delete it when none of the study's jobs is queued")
    return dict(found)


def _keep(folder: StudyFolder, jobs: dict[str, str]) -> None:
    write_whole(folder.path / JOBS_FILE, json.dumps(_known(folder) | jobs, indent=1).encode())
