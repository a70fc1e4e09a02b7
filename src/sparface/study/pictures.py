"""The charts and faces of a study's page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.ticker import PercentFormatter

from sparface.report import charts, robustness
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
    """Yield the charts of an experiment: over training, budgets, training sets and strengths of attacks."""
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
    yield from under_attack(results)


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


def under_attack(results: Results) -> Iterator[Picture]:
    """Yield a chart for each evaluation and attack of two strengths or more, with one curve per arm."""
    on = f", {results.main_set}" if results.main_set else ""
    for evaluation in results.experiment.evaluations:
        for attack, metrics in strengths(results, evaluation).items():
            places = {0.0: f"{evaluation}.accuracy", **metrics}
            arms = enumerate(results.experiment.arms)
            curves = {arm: points for arm in arms if (points := under(results, places, arm[1]))}
            text = f"Accuracy under the attack {attack} ({evaluation}{on}): means with 95 % intervals."
            yield Picture(robustness.chart(attack, curves), text)


def under(results: Results, places: Mapping[float, str], arm: str) -> robustness.Points:
    """The means of an arm at strength → metric, at the budget that is best without attack."""
    best = results.at(places[0.0], arm, results.main_set)
    found = [(size, results.mean(metric, best)) for size, metric in places.items()] if best else []
    return [(size, one.mean, *_ends(one)) for size, one in found if one]


def _ends(mean: Estimate) -> tuple[float, float]:
    """The ends of a mean's interval; the mean itself if it has none."""
    known = math.isfinite(mean.low) and math.isfinite(mean.high)
    return (mean.low, mean.high) if known else (mean.mean, mean.mean)


def strengths(results: Results, evaluation: str) -> dict[str, dict[float, str]]:
    """Return attack → strength → metric, for attacks of two strengths or more."""
    found: dict[str, dict[float, str]] = {}
    for metric in results.figures:
        of, _, figure = metric.partition(".")
        if of == evaluation and (named := robustness.strength(figure)):
            found.setdefault(named[0], {})[named[1]] = metric
    return {attack: metrics for attack, metrics in found.items() if len(metrics) > 1}


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
