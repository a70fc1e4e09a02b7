"""How many cores a process takes, as schedulers give them out."""

from __future__ import annotations

import os

import pytest

from sparface.machine import cores_per_process, usable_cores


@pytest.mark.parametrize(
    ("bound", "allotted", "processes", "expected"),
    [
        (8, None, 1, 8),
        (8, None, 4, 2),  # torchrun on a machine
        (8, "8", 4, 2),  # SLURM, all processes on all of the job's cores
        (2, "8", 4, 2),  # SLURM, each process on its own
        (64, "4", 2, 2),  # SLURM that only says how many
        (1, None, 4, 1),
        (2, "1", 2, 1),
    ],
)
def test_cores_are_shared_as_the_scheduler_means_it(
    bound: int, allotted: str | None, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if allotted:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", allotted)
    assert cores_per_process(processes) == expected
    assert usable_cores() == min(bound, int(allotted or bound))
