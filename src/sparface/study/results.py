"""What the parts of a study have measured: figures by arm, training set, budget and seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any

import numpy as np

from sparface.errors import UserError
from sparface.forms import COUNT, NUMBER, fits, read_json
from sparface.report.read import Run, read_runs
from sparface.study.file import Experiment
from sparface.study.folder import Done, StudyFolder
from sparface.study.intervals import Estimate, Measured, difference, estimate
from sparface.study.plan import Cell, cells_of

MAX_BYTES = 1 << 26
MOST_FIGURES, MOST_REPLICATES = 500, 100_000
LARGEST, LONGEST = 1e12, 200
"""Bounds of a figure, and of the length of its name."""
LOWER_IS_BETTER = ("eer", "frechet", "required", "calibration_error")
BOOTSTRAP = {"identities_digest": str, "count": COUNT, "seed": int, "replicates": dict}


@dataclass(frozen=True)
class Setting:
    """What is compared: an arm on a training set at a budget, over all seeds."""

    arm: str
    on: str
    images: int


Figures = dict[Setting, dict[int, Measured]]
"""Setting → seed → figure."""


class Results:
    """The figures of one experiment."""

    def __init__(self, folder: StudyFolder, experiment: Experiment, done: Mapping[str, Done]) -> None:
        """`done` are the finished parts of the study (see `StudyFolder.done`)."""
        self.folder, self.experiment, self.done = folder, experiment, done
        self.unreadable: list[str] = []

    @cached_property
    def figures(self) -> dict[str, Figures]:
        """EVALUATION.METRIC → figures.

        A recognizer that was not trained has the same figure for every seed and training set.
        """
        found: dict[str, Figures] = {}
        for cell in self.cells:
            for name in self.experiment.evaluations:
                for metric, value in self._read(cell, name).items():
                    table = found.setdefault(f"{name}.{metric}", {})
                    if cell.images:
                        table.setdefault(Setting(cell.arm, cell.on, cell.images), {})[cell.seed] = value
                    else:
                        always = dict.fromkeys(self.experiment.seeds, value)
                        table |= {Setting(cell.arm, on, 0): always for on in self.experiment.on}
        return found

    def settings(self, metric: str, arm: str, on: str) -> list[Setting]:
        """Return the settings of an arm on a training set that have a figure."""
        return self._settings.get((metric, arm, on), [])

    @cached_property
    def _settings(self) -> dict[tuple[str, str, str], list[Setting]]:
        found: dict[tuple[str, str, str], list[Setting]] = {}
        for metric, table in self.figures.items():
            for one in table:
                found.setdefault((metric, one.arm, one.on), []).append(one)
        return found

    @cached_property
    def cells(self) -> list[Cell]:
        return [*cells_of(self.experiment)]

    def cells_of(self, arm: str, on: str) -> list[Cell]:
        """Return the trainings of an arm on a training set, or the cell of a finished recognizer."""
        return self._cells.get((arm, "" if self.experiment.arms[arm].checkpoint else on), [])

    @cached_property
    def _cells(self) -> dict[tuple[str, str], list[Cell]]:
        found: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault((cell.arm, cell.on), []).append(cell)
        return found

    @property
    def main_set(self) -> str:
        """The first training set, which is meant where none is named."""
        return next(iter(self.experiment.on))

    def _read(self, cell: Cell, evaluation: str) -> dict[str, Measured]:
        """Read the figures of an evaluation; {} if it is missing or damaged."""
        part = self.folder.plan.parts.get(f"evaluate.{cell.name}.{evaluation}")
        if part is None or part.name not in self.done:
            return {}
        own = self.folder.resolved
        found = measured(read_json(own, str(part.out.relative_to(own)), MAX_BYTES))
        if not found:
            self.unreadable.append(part.out.name)
        return found

    def run(self, cell: Cell) -> Run | None:
        """Read the run of a training; None if it has none, or a damaged one."""
        try:
            return read_runs([self.folder.own(self.folder.plan.run(cell))])[0]
        except (OSError, UserError):
            return None

    def at(self, metric: str, arm: str, on: str, images: int | None = None) -> Setting | None:
        """Return the setting of an arm at a budget, or at its best one; None if it has no figures.

        The best budget is the one with the best mean of `experiment.choose`, or of the metric itself, among
        those that most seeds have.
        """
        settings = self.settings(metric, arm, self._on(arm, on))
        settings = [one for one in settings if images in (None, one.images) or not one.images]
        chosen = self.experiment.choose or metric
        sign = -1 if lower_is_better(chosen) else 1

        def merit(setting: Setting) -> tuple[int, float]:
            mean = self.mean(chosen, setting)
            return (mean.seeds, sign * mean.mean) if mean else (0, -math.inf)

        return max(settings, key=merit, default=None)

    def _on(self, arm: str, on: str) -> str:
        """Return the training set that `on` means for an arm: none, if it is trained on faces of its own."""
        return "" if self.experiment.arms[arm].on == ("",) else on

    def missing(self, metric: str, arms: Iterable[str], on: str = "", images: int | None = None) -> list[str]:
        """Return the parts that the figures of some arms at a budget, or at their best, still need.

        These have not finished, or their results cannot be read.
        """
        metrics = {metric} if images or not self.experiment.choose else {metric, self.experiment.choose}
        cells = [cell for arm in arms for cell in self.cells_of(arm, self._on(arm, on or self.main_set))]
        cells = [cell for cell in cells if images in (None, cell.images) or not cell.images]
        lacking = [(cell, one) for cell in cells for one in metrics if not self._has(one, cell)]
        names = {f"evaluate.{cell.name}.{one.partition('.')[0]}" for cell, one in lacking}
        return sorted(names & self.folder.plan.parts.keys())

    def _has(self, metric: str, cell: Cell) -> bool:
        """Whether the figure of a cell is there, or will never be, since no evaluation has this one."""
        if metric not in self.figures:
            return f"evaluate.{cell.name}.{metric.partition('.')[0]}" in self.done
        setting = Setting(cell.arm, cell.on if cell.images else self.main_set, cell.images)
        return cell.seed in self.figures[metric].get(setting, {})

    def mean(self, metric: str, setting: Setting) -> Estimate | None:
        values = self.figures.get(metric, {}).get(setting)
        return estimate([*values.values()]) if values else None

    def gain(
        self,
        metric: str,
        arm: str,
        than: str,
        on: str = "",
        images: int | None = None,
        *,
        than_metric: str = "",
    ) -> Estimate | None:
        """Return how much better `arm` is than another arm, paired by seed; None if something is missing.

        `than_metric` is the metric of the other arm; by default the same. Each arm is at its best budget
        unless `images` is given. A positive gain is an improvement.
        """
        on, than_metric = on or self.main_set, than_metric or metric
        first, second = self.at(metric, arm, on, images), self.at(than_metric, than, on, images)
        if first is None or second is None:
            return None
        own, other = self.figures[metric][first], self.figures[than_metric][second]
        return difference(other, own) if lower_is_better(metric) else difference(own, other)


def lower_is_better(metric: str) -> bool:
    return metric.partition(".")[2].rpartition("/")[2] in LOWER_IS_BETTER


def measured(document: Any) -> dict[str, Measured]:
    """Read the figures of an evaluation's document, with their bootstrap; leaves out what is damaged."""
    if not fits(document, {"figures": dict}):
        return {}
    found = document["figures"] | {"required": document.get("required")}  # images of a gallery, the least
    figures = {name: value for name, value in found.items() if _is_figure(name, value)}
    bootstrap = document.get("bootstrap")
    if not fits(bootstrap, BOOTSTRAP) or bootstrap["count"] > MOST_REPLICATES:
        bootstrap = {"replicates": {}}
    people = str([bootstrap.get(key) for key in ("identities_digest", "count", "seed")])
    return {
        name: Measured(float(value), _replicates(bootstrap, name), people)
        for name, value in list(figures.items())[:MOST_FIGURES]
    }


def _replicates(bootstrap: Mapping[str, Any], name: str) -> Any:
    """Return the replicates of a figure as an array [R], or None if it has none."""
    found = bootstrap["replicates"].get(name)
    if not isinstance(found, list) or len(found) != bootstrap["count"]:
        return None
    if not {type(value) for value in found} <= {int, float, NoneType}:
        return None
    try:
        values = np.array([math.nan if value is None else value for value in found], np.float64)
    except OverflowError:
        return None
    return values if (np.abs(values[~np.isnan(values)]) <= LARGEST).all() else None


def _is_figure(name: str, value: Any) -> bool:
    return len(name) <= LONGEST and name.isprintable() and fits(value, NUMBER) and abs(value) <= LARGEST


def is_finite(value: Any) -> bool:
    return fits(value, NUMBER) and math.isfinite(value)
