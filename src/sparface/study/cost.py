"""What each arm has cost: CPU time and images seen, real and made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sparface.errors import UserError
from sparface.report.read import Run, read_runs
from sparface.study.plan import Cell
from sparface.study.results import Results, Setting


@dataclass(frozen=True)
class Cost:
    """The mean cost of a run."""

    setting: Setting
    made: float | None
    """Images seen that are not real faces; None if the run does not say."""
    training: float
    """CPU seconds."""
    preparation: float
    """CPU seconds of everything that had to exist before."""


def costs(results: Results) -> Iterator[Cost]:
    """Yield the cost of every arm, training set and budget that has a finished run."""
    by_setting: dict[Setting, list[Cell]] = {}
    for cell in results.cells:
        if cell.images and finished(results, cell):
            by_setting.setdefault(Setting(cell.arm, cell.on, cell.images), []).append(cell)
    for setting, cells in by_setting.items():
        made = [made_images(results, cell) for cell in cells]
        known = [value for value in made if value is not None]
        yield Cost(
            setting,
            float(np.mean(known)) if len(known) == len(made) else None,
            float(np.mean([cpu_seconds(results, f"train.{cell.name}") for cell in cells])),
            float(np.mean([preparation(results, cell) for cell in cells])),
        )


def finished(results: Results, cell: Cell) -> bool:
    return results.folder.finished(results.folder.plan.parts[f"train.{cell.name}"]) is not None


def cpu_seconds(results: Results, name: str) -> float:
    record = results.folder.record(results.folder.plan.parts[name])
    return record.cpu_seconds if record else 0.0


def preparation(results: Results, cell: Cell) -> float:
    """Return the CPU seconds of all parts that a training needs, directly or not."""
    parts = results.folder.plan.parts
    found: set[str] = set()
    waiting = list(parts[f"train.{cell.name}"].needs)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += parts[name].needs
    return sum(cpu_seconds(results, name) for name in found)


def made_images(results: Results, cell: Cell) -> float | None:
    """Return how many of the images that a run has seen were made."""
    run = read_run(results, cell)
    return run.mixed * cell.images if run else None


def read_run(results: Results, cell: Cell) -> Run | None:
    try:
        return read_runs([results.folder.plan.run(cell)])[0]
    except UserError:
        return None
