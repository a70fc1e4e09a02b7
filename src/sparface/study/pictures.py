"""The charts and faces of a study's page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.ticker import PercentFormatter

from sparface.report import charts
from sparface.report.charts import Line
from sparface.report.compare import Picture, Report
from sparface.report.read import Run
from sparface.study.claims import is_rate
from sparface.study.intervals import Estimate
from sparface.study.plan import Cell
from sparface.study.results import Results
from sparface.study.tables import headline_metric

VALIDATION = "validation/accuracy"
Points = Sequence[tuple[int, Estimate]]
"""Places on the horizontal axis, from 0, and what was measured there."""


def drawn(results: Results) -> Iterator[Picture]:
    """Yield the charts of an experiment: over training, over budgets, over training sets."""
    lines = over_training(results)
    if lines:
        png = charts.over_training(lines, percent=True)
        on = f", {results.main_set}" if results.main_set else ""
        yield Picture(png, f"Accuracy on the validation identities during training, mean over seeds{on}.")
    metric = headline_metric(results)
    if not metric:
        return
    images = sorted({images for arm in results.experiment.arms.values() for images in arm.images})
    budgets = {arm: over_budgets(results, metric, arm, images) for arm in results.experiment.arms}
    if max(map(len, budgets.values())) > 1:
        labels = [charts.short(one) for one in images]
        yield Picture(with_intervals(budgets, labels, "images seen", is_rate(metric)), f"{metric} by budget.")
    sets = {arm: over_sets(results, metric, arm) for arm in results.experiment.arms}
    if len(results.experiment.on) > 1:
        text = f"{metric} by training set, each arm at its best budget."
        labels = list(results.experiment.on)
        yield Picture(with_intervals(sets, labels, "trained on", is_rate(metric)), text)


def over_training(results: Results) -> list[Line]:
    """Return one curve per arm: the validations of its longest runs on the first training set."""
    lines = []
    for index, arm in enumerate(results.experiment.arms.values()):
        cells = shown_cells(results, arm.name)
        runs = [run for cell in cells if (run := results.run(cell)) and VALIDATION in run.metrics]
        x, y = mean_curve(runs) if runs else ([], [])
        if np.isfinite(y).any():
            lines.append(Line(arm.name, index, x, y))
    return lines


def shown_cells(results: Results, arm: str) -> list[Cell]:
    """Return the longest runs of an arm on its first training set, one per seed."""
    one = results.experiment.arms[arm]
    cells = results.cells_of(arm, one.on[0])
    return [cell for cell in cells if cell.images and cell.images == max(one.images)]


def mean_curve(runs: Sequence[Run]) -> tuple[list[int], list[float]]:
    """Return the mean of the runs' validations, where all runs have one."""
    tables = [dict(zip(*run.metrics[VALIDATION], strict=True)) for run in runs]
    shared = sorted(set(tables[0]).intersection(*tables))
    return shared, [float(np.mean([table[images] for table in tables])) for images in shared]


def over_budgets(results: Results, metric: str, arm: str, images: list[int]) -> Points:
    settings = results.settings(metric, arm, results.experiment.arms[arm].on[0])
    found = [(one.images, results.mean(metric, one)) for one in settings if one.images]
    return sorted((images.index(budget), mean) for budget, mean in found if mean)


def over_sets(results: Results, metric: str, arm: str) -> Points:
    best = [results.at(metric, arm, on) for on in results.experiment.on]
    found = [results.mean(metric, one) if one else None for one in best]
    return [(place, mean) for place, mean in enumerate(found) if mean]


def with_intervals(lines: dict[str, Points], labels: list[str], title: str, percent: bool) -> bytes:
    """Plot means with their intervals over labels that are evenly spaced."""
    with matplotlib.rc_context(charts.STYLE):
        figure, axes = charts.blank((6.4, 3.4))
        for index, (name, points) in enumerate(lines.items()):
            line = Line(name, index, (), ())
            x = [place + 0.04 * (index - len(lines) / 2) for place, _ in points]
            y = [one.mean for _, one in points]
            reach = [one.high - one.mean if math.isfinite(one.high) else 0.0 for _, one in points]
            axes.errorbar(
                x, y, reach, color=line.colour, linestyle=line.dash, marker="o", markersize=3.2,
                linewidth=1.4, elinewidth=0.8, label=name,
            )  # fmt: skip
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlabel(title)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(
            frameon=False, fontsize=7.5, labelcolor="linecolor", loc="center left", bbox_to_anchor=(1, 0.5)
        )
        return charts.png(figure)


def faces(results: Results) -> Iterator[tuple[str, list[Picture]]]:
    """Yield (arm, its newest previews) of the first seed, one row of faces each."""
    for arm in results.experiment.arms:
        for cell in shown_cells(results, arm)[:1]:
            run = results.run(cell)
            if run and run.previews:
                yield arm, Report([run]).pictures(run)
