"""The tables of a study, the same in HTML and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparface.study.claims import is_rate, verdict
from sparface.study.cost import Cost, costs
from sparface.study.file import Arm, Evaluation
from sparface.study.intervals import Estimate
from sparface.study.results import Results, Setting

UNSHOWN = ("standard_error", "threshold")
"""Metrics that are not shown unless the study file asks for them."""
FIRST_SHOWN = 6
DASH, SO_FAR = "—", " so far"


@dataclass(frozen=True)
class Sheet:
    """A table of texts; the first column names the row."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Sequence[str] = field(default=())
    """A class for each row: the outcome of a claim."""


def sheets(results: Results) -> list[Sheet]:
    """All tables of an experiment; leaves out empty ones."""
    found = [claims(results), *figures(results), gains(results), arms(results), cost(results)]
    return [sheet for sheet in found if sheet.rows]


def claims(results: Results) -> Sheet:
    verdicts = [verdict(claim, results) for claim in results.experiment.claims]
    return Sheet(
        "Claims",
        "A claim is reproduced if the whole 95 % interval of what was measured is at or beyond it, not "
        "reproduced if the whole interval is short of it, and undecided otherwise.",
        ("claim", "verdict", "because"),
        [(one.claim.says, one.outcome, one.because) for one in verdicts],
        [one.outcome.replace(" ", "-") for one in verdicts],
    )


def figures(results: Results) -> list[Sheet]:
    """One table per evaluation: arms, training sets and budgets down, metrics across."""
    found = []
    for evaluation in results.experiment.evaluations.values():
        metrics = metrics_of(results, evaluation)
        settings = list(dict.fromkeys(setting for name in metrics for setting in results.figures[name]))
        rows = [
            (*label(results, setting), seeds_of(results, metrics, setting),
             *(shown(name, results.mean(name, setting)) for name in metrics))
            for setting in settings
        ]  # fmt: skip
        head = ("arm", "trained on", "images", "seeds", *(name.partition(".")[2] for name in metrics))
        found.append(Sheet(f"Figures: {evaluation.name}", NOTE, head, rows))
    return found


def metrics_of(results: Results, evaluation: Evaluation) -> list[str]:
    """Return the metrics to show: those that the study file names, or the first ones."""
    known = [name for name in results.figures if name.partition(".")[0] == evaluation.name]
    if evaluation.show:
        return [name for one in evaluation.show if (name := f"{evaluation.name}.{one}") in known]
    return [name for name in known if not name.endswith(UNSHOWN)][:FIRST_SHOWN]


NOTE = (
    "Mean over seeds ± standard deviation between seeds [95 % interval of the mean: over seeds and, if the "
    "evaluation has a bootstrap, over the people who are tested]."
)


def gains(results: Results) -> Sheet:
    """Every arm against the first one: at equal budgets and, if there are several, each at its best."""
    experiment = results.experiment
    metric = headline_metric(results)
    rows = []
    base, *others = experiment.arms
    for on in experiment.on if metric else ():
        for arm in others:
            for images in budgets(experiment.arms[arm], experiment.arms[base]):
                gain = results.gain(metric, arm, base, on, images)
                if gain is not None:
                    at = "each at its best" if images is None else f"{images:,}"
                    partial = SO_FAR if results.missing(metric, (arm, base), on, images) else ""
                    of = f"{gain.seeds} of {len(experiment.seeds)}" if partial else str(gain.seeds)
                    rows.append((arm, on or DASH, at, of, difference(metric, gain) + partial))
    note = f"Gain in {metric} over {base}, the first arm; differences of runs with the same seed."
    if any(row[-1].endswith(SO_FAR) for row in rows):
        note += f" {SO_FAR.strip().capitalize()}: parts that the comparison needs are missing."
    return Sheet("Paired differences", note, ("arm", "trained on", "images", "seeds", "gain"), rows)


def budgets(arm: Arm, base: Arm) -> list[int | None]:
    """Return the budgets to compare two arms at; None stands for each arm's best."""
    shared = sorted(set(arm.images) & set(base.images))
    return [*shared, None] if len(shared) != 1 else [*shared]


def arms(results: Results) -> Sheet:
    """What each arm is: its settings where they differ from those that all arms share."""
    known = results.experiment.arms.values()
    every = [{"config": arm.config, **arm.settings} for arm in known if not arm.checkpoint]
    shared = {k: v for k, v in (every[0] if every else {}).items() if all(one.get(k) == v for one in every)}
    rows = [
        (arm.name, arm.about or DASH, arm.checkpoint or listed(arm.settings, without=shared)) for arm in known
    ]
    note = f"All of them: {listed(shared)}." if shared else ""
    return Sheet("Arms", note, ("arm", "what it is", "settings of its own"), rows)


def listed(settings: Mapping[str, Any], without: Mapping[str, Any] | None = None) -> str:
    own = {key: value for key, value in settings.items() if key not in (without or {})}
    return ", ".join(f"{key}: {value}" for key, value in own.items()) or DASH


def cost(results: Results) -> Sheet:
    rows = [_cost_row(results, one) for one in costs(results)]
    note = (
        "Per run, mean over seeds. Preparation is all that a run needs beforehand: sets that are drawn or "
        "generated, and runs that it starts from. Made faces are drawn, generated or sparring faces; with "
        "sparring.slots: add they are not part of the images seen."
    )
    head = ("arm", "trained on", "images seen", "made", "CPU s, training", "CPU s, preparation")
    return Sheet("Cost", note, head, rows)


def _cost_row(results: Results, one: Cost) -> tuple[str, ...]:
    made = DASH if one.made is None else f"{one.made:,.0f}"
    return *label(results, one.setting), made, f"{one.training:,.0f}", f"{one.preparation:,.0f}"


def headline_metric(results: Results) -> str:
    """Return the metric that the study is about: that of its gains, of its first claim, or the first one."""
    experiment = results.experiment
    named = [experiment.gains.metric] if experiment.gains else []
    named += [claim.metric for claim in experiment.claims if claim.metric]
    return next(iter([name for name in named if name in results.figures] or results.figures), "")


def label(results: Results, setting: Setting) -> tuple[str, str, str]:
    return setting.arm, setting.on or DASH, f"{setting.images:,}" if setting.images else "as it is"


def seeds_of(results: Results, metrics: Sequence[str], setting: Setting) -> str:
    there = max((len(results.figures[name].get(setting, {})) for name in metrics), default=0)
    planned = len(results.experiment.seeds)
    return str(there) if there == planned else f"{there} of {planned}"


def shown(metric: str, found: Estimate | None) -> str:
    """Format a mean: 80.2 % ± 0.4 [79.1, 81.3]."""
    if found is None:
        return DASH
    scale, digits, unit = (100, 1, " %") if is_rate(metric) else (1, 4, "")

    def number(value: float) -> str:
        return f"{scale * value:.{digits}f}".replace("-", "−")

    text = number(found.mean) + unit
    text += f" ± {number(found.spread)}" if math.isfinite(found.spread) else ""
    return text + (f" [{number(found.low)}, {number(found.high)}]" if math.isfinite(found.low) else "")


def difference(metric: str, found: Estimate) -> str:
    """Format a difference: with its sign, in points for shares."""
    text = shown(metric, found).replace(" %", " points")
    return text if found.mean < 0 else f"+{text}"
