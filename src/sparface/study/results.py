"""What the parts of a study have measured: figures by arm, training set, budget and seed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any

import numpy as np

from sparface.errors import UserError
from sparface.files import inside, read_bounded
from sparface.forms import COUNT, NUMBER, fits
from sparface.study.file import Experiment
from sparface.study.folder import StudyFolder
from sparface.study.intervals import Estimate, Measured, difference, estimate
from sparface.study.plan import Cell

MAX_BYTES = 1 << 26
MOST_FIGURES, MOST_REPLICATES = 500, 100_000
LOWER_IS_BETTER = ("eer", "frechet", "required")
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

    def __init__(self, folder: StudyFolder, experiment: Experiment) -> None:
        self.folder, self.experiment = folder, experiment
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
                    for setting, seed in self._settings(cell):
                        found.setdefault(f"{name}.{metric}", {}).setdefault(setting, {})[seed] = value
        return found

    @cached_property
    def cells(self) -> list[Cell]:
        return [cell for cell in self.folder.plan.cells() if cell.experiment == self.experiment.name]

    @property
    def main_set(self) -> str:
        """The first training set, which is meant where none is named."""
        return next(iter(self.experiment.on))

    def _settings(self, cell: Cell) -> Iterator[tuple[Setting, int]]:
        if cell.images:
            yield Setting(cell.arm, cell.on, cell.images), cell.seed
            return
        for on in self.experiment.on:
            for seed in self.experiment.seeds:
                yield Setting(cell.arm, on, 0), seed

    def _read(self, cell: Cell, evaluation: str) -> dict[str, Measured]:
        """Read the figures of an evaluation; {} if it is missing or damaged."""
        part = self.folder.plan.parts.get(f"evaluate.{cell.name}.{evaluation}")
        if part is None or self.folder.finished(part) is None:
            return {}
        try:
            own = self.folder.resolved
            text = read_bounded(inside(own, part.out.relative_to(own)), MAX_BYTES)
            found = measured(json.loads(text))
        except (OSError, UserError, ValueError, RecursionError):
            found = {}
        if not found:
            self.unreadable.append(part.out.name)
        return found

    def at(self, metric: str, arm: str, on: str, images: int | None = None) -> Setting | None:
        """Return the setting of an arm at a budget, or at its best one; None if it has no figures.

        The best budget is the one with the best mean of `experiment.choose`, or of the metric itself.
        """
        on = "" if self.experiment.arms[arm].on == ("",) else on  # trained on faces of its own
        settings = [one for one in self.figures.get(metric, {}) if (one.arm, one.on) == (arm, on)]
        settings = [one for one in settings if images in (None, one.images) or not one.images]
        chosen = self.experiment.choose or metric
        sign = -1 if lower_is_better(chosen) else 1

        def merit(setting: Setting) -> float:
            mean = self.mean(chosen, setting)
            return sign * mean.mean if mean else -math.inf

        return max(settings, key=merit, default=None)

    def mean(self, metric: str, setting: Setting) -> Estimate | None:
        values = self.figures.get(metric, {}).get(setting)
        return estimate([*values.values()]) if values else None

    def gain(
        self, metric: str, arm: str, than: str, on: str = "", images: int | None = None
    ) -> Estimate | None:
        """Return how much better `arm` is than another arm, paired by seed; None if something is missing.

        Each arm is at its best budget unless `images` is given. A positive gain is an improvement.
        """
        on = on or self.main_set
        first, second = self.at(metric, arm, on, images), self.at(metric, than, on, images)
        if first is None or second is None:
            return None
        table = self.figures[metric]
        better, worse = (second, first) if lower_is_better(metric) else (first, second)
        return difference(table[better], table[worse])


def lower_is_better(metric: str) -> bool:
    return metric.partition(".")[2].rpartition("/")[2] in LOWER_IS_BETTER


def measured(document: Any) -> dict[str, Measured]:
    """Read the figures of an evaluation's document, with their bootstrap; leaves out what is damaged."""
    if not fits(document, {"figures": dict}):
        return {}
    figures = {name: value for name, value in document["figures"].items() if is_finite(value)}
    if is_finite(document.get("required")):  # the least number of gallery images
        figures["required"] = document["required"]
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
        return np.array([math.nan if value is None else value for value in found], np.float64)
    except OverflowError:
        return None


def is_finite(value: Any) -> bool:
    return fits(value, NUMBER) and math.isfinite(value)
