"""The report: several runs side by side in one self-contained HTML file."""

from __future__ import annotations

import base64
import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

import sparface
from sparface.errors import UserError
from sparface.files import inside, require_writable, write_whole
from sparface.report import charts, membership, robustness
from sparface.report.charts import Line
from sparface.report.formats import count, percent, setting, with_interval
from sparface.report.read import Run, can_draw_confusion, read_runs
from sparface.report.seeds import Group, groups

EVENTS_SHOWN = 30
OWN_CHART = ("validation/accuracy", "images_per_second")
FURTHER = "Further measurements"
CAPTIONS = {"learning_rate": "learning rate", "skipped": "updates skipped"}
"""Captions of the metrics that every run has; captions of a recipe's metrics come from the run."""


def compare(runs: Sequence[Path], out: Path) -> None:
    """Write a report on one or more runs to `out` (.html), replacing an existing file.

    Reads config.yaml, metrics.jsonl, events.jsonl, previews and evaluations of each run. The report notes
    what a run does not have yet. Raises `UserError` for a folder that is not a run.
    """
    if not runs:
        raise UserError("compare: no runs given; name at least one run folder")
    out = Path(out)
    require_writable(out)
    page = render(read_runs([Path(run) for run in runs]))
    write_whole(out, page.encode(errors="replace"))  # a JSON file may hold half of a surrogate pair


def render(runs: Sequence[Run]) -> str:
    """Render the report as HTML."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "count": count, "setting": setting}
    return environment.get_template("report.html").render(report=Report(list(runs)))


@dataclass(frozen=True)
class Picture:
    """An image embedded in the page."""

    png: bytes
    caption: str
    width: int = 0

    @property
    def uri(self) -> Markup:
        return Markup("data:image/png;base64," + base64.b64encode(self.png).decode())


@dataclass
class Report:
    """The data that the template uses."""

    runs: list[Run]

    @property
    def title(self) -> str:
        names = [run.name for run in self.runs]
        return names[0] if len(names) == 1 else " · ".join(names) if len(names) <= 3 else f"{len(names)} runs"

    @property
    def made(self) -> str:
        return f"sparface {sparface.__version__}, {datetime.date.today().isoformat()}"

    def colour(self, run: Run) -> str:
        return charts.colour(self.runs.index(run))

    def headline(self, run: Run) -> dict[str, Any]:
        """Return the most important figure of a run and its description."""
        shared = [name for name in self.evaluations if run.name in self.evaluations[name]]
        if shared:
            figures = self.evaluations[shared[0]][run.name]["figures"]
            return {
                "value": figures["accuracy"],
                "error": figures["standard_error"],
                "what": f"accuracy on {shared[0]}",
            }
        for name, document in run.measured.items():
            if document["kind"] == "classification" and "accuracy" in document["figures"]:
                value = document["figures"]["accuracy"]
                return {"value": value, "error": None, "what": f"accuracy in {name}"}
        accuracy = run.last("validation/accuracy")
        if accuracy is not None:
            return {
                "value": accuracy,
                "error": None,
                "what": "accuracy on the validation set, during training",
            }
        what = "no evaluation yet" if run.evaluation else "recognizes nothing, so it has no accuracy"
        return {"value": None, "error": None, "what": what}

    def facts(self, run: Run) -> list[tuple[str, str]]:
        """Return short facts about a run as (name, value)."""
        parameters = next((e["provenance"].get("parameters") for e in run.evaluations.values()), None)
        rate = self.throughput(run)
        return [
            ("recipe", str(run.config.get("recipe", "unknown"))),
            ("images seen", count(run.images_seen)),
            ("parameters", f"{parameters / 1e6:.1f} M" if parameters else "—"),
            ("images/s", f"{rate:,.1f}" if rate else "—"),
        ]

    def throughput(self, run: Run) -> float | None:
        """Return the median of the logged images per second."""
        _, values = run.metrics.get("images_per_second", ([], []))
        finite = [value for value in values if np.isfinite(value)]
        return float(np.median(finite)) if finite else None

    @cached_property
    def evaluations(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Evaluation → run → result, the most common evaluation first."""
        names = Counter(name for run in self.runs for name in run.evaluations)
        return {
            name: {run.name: run.evaluations[name] for run in self.runs if name in run.evaluations}
            for name, _ in names.most_common()
        }

    @cached_property
    def measured(self) -> dict[str, dict[str, dict[str, str]]]:
        """Evaluation other than verification → figure → run → value with its interval."""
        tables: dict[str, dict[str, dict[str, str]]] = {}
        for run in self.runs:
            for name, document in run.measured.items():
                for figure in document["figures"]:
                    row = tables.setdefault(name, {}).setdefault(figure, {})
                    row[run.name] = with_interval(document, figure)
        return tables

    @cached_property
    def groups(self) -> list[Group]:
        """Runs that differ only in their seed."""
        return groups(self.runs)

    @property
    def without_evaluation(self) -> list[Run]:
        kinds = {run.name: {document["kind"] for document in run.measured.values()} for run in self.runs}
        recognizing = [run for run in self.runs if run.evaluation and not run.evaluations]
        return [run for run in recognizing if "classification" not in kinds[run.name]]

    @property
    def differences(self) -> list[tuple[str, list[Any]]]:
        """Config keys whose values differ between the runs."""
        keys = dict.fromkeys(key for run in self.runs for key in run.config)
        rows = [(key, [run.config.get(key) for run in self.runs]) for key in keys]
        return [(key, values) for key, values in rows if any(value != values[0] for value in values)]

    @property
    def accuracy(self) -> Picture | None:
        lines = self._lines("validation/accuracy")
        caption = "Accuracy on the validation set during training."
        verified = all("validation/auc" in run.metrics for run in self.runs if run.metrics)
        return Picture(charts.over_training(lines, percent=True, chance=verified), caption) if lines else None

    @property
    def confusions(self) -> list[Picture]:
        return [
            Picture(
                charts.confusion(document["classes"], document["confusion"]),
                f"{name} by {run.name}: faces of each class (rows) by the answer (columns).",
            )
            for run in self.runs
            for name, document in run.measured.items()
            if can_draw_confusion(document)
        ]

    @property
    def mix(self) -> Picture | None:
        """Accuracy against the share of made faces; None if all runs have the same share."""
        points = [(run.mixed, self.headline(run)["value"]) for run in self.runs]
        points = [(share, accuracy) for share, accuracy in points if accuracy is not None]
        if len({share for share, _ in points}) < 2:
            return None
        caption = "Accuracy against the share of additional sets (data.mix) in a batch. Line: means."
        return Picture(charts.against_share(points), caption)

    @property
    def roc(self) -> list[Picture]:
        pictures = []
        for name, results in self.evaluations.items():
            lines = [
                Line(run.name, index, results[run.name]["roc"]["far"], results[run.name]["roc"]["tar"])
                for index, run in enumerate(self.runs)
                if run.name in results and results[run.name].get("roc")
            ]
            if lines:
                pictures.append(
                    Picture(
                        charts.roc(lines), f"ROC on {name}, starting at zero false accepts. Dotted: chance."
                    )
                )
        return pictures

    @property
    def attacks(self) -> list[Picture]:
        drawn = [*robustness.curves(self.runs), *membership.curves(self.runs)]
        return [Picture(png, caption) for png, caption in drawn]

    @property
    def speed(self) -> Picture | None:
        lines = self._lines("images_per_second")
        return Picture(charts.over_training(lines), "Images per second.") if lines else None

    @cached_property
    def losses(self) -> dict[str, list[Picture]]:
        """Group → one small chart per metric."""
        known = self.captions
        groups: dict[str, list[Picture]] = {group: [] for group in known}
        for name in sorted({name for run in self.runs for name in run.metrics}, key=self._metric_order):
            lines = self._lines(name)
            if name not in OWN_CHART and lines:
                group = next((group for group, captions in known.items() if name in captions), FURTHER)
                chart = charts.over_training(lines, size=(3.7, 2.2), names=False)
                groups[group].append(Picture(chart, self.caption(name)))
        return {group: pictures for group, pictures in groups.items() if pictures}

    @cached_property
    def captions(self) -> dict[str, dict[str, str]]:
        """Group → metric → caption, merged from all runs."""
        found: dict[str, dict[str, str]] = {}
        for run in self.runs:
            for group, captions in run.captions.metrics.items():
                found.setdefault(group, {}).update(captions)
        further = found.pop(FURTHER, {})
        return found | {FURTHER: further | CAPTIONS}

    def _metric_order(self, metric: str) -> tuple[int, str]:
        known = [name for captions in self.captions.values() for name in captions]
        last = metric.rsplit("/", 1)[-1]
        return (known.index(last) if last in known else len(known), metric)

    def caption(self, metric: str) -> str:
        """Describe a metric in words; `generator/gradient_norm` → gradient norm (generator)."""
        *groups, last = metric.split("/")
        known = {name: text for captions in self.captions.values() for name, text in captions.items()}
        words = known.get(last, last.replace("_", " "))
        return f"{words} ({', '.join(groups)})" if groups else words

    @property
    def smoothed(self) -> bool:
        return any(len(x) > charts.SMOOTH_FROM for run in self.runs for x, _ in run.metrics.values())

    def pictures(self, run: Run) -> list[Picture]:
        """Return the newest previews, one row of faces each."""
        captions = run.captions.pictures
        order = {name: place for place, name in enumerate(captions)}
        names = sorted(run.previews, key=lambda name: (order.get(name, len(order)), name))
        found = []
        for name in names:
            try:
                png, width = charts.strip(inside(run.folder, f"previews/{run.previews[name].name}"))
            except Exception:  # a decoder may raise anything on hostile bytes
                run.unreadable.append(run.previews[name].name)
                continue
            found.append(Picture(png, captions.get(name, name.replace("_", " ")), width))
        return found

    def pictured_at(self, run: Run) -> str:
        """Return the number of images seen when the newest previews were made."""
        newest = max((path.stem.split("-")[0] for path in run.previews.values()), default="0")
        return count(int(newest))

    def events(self, run: Run) -> list[dict[str, Any]]:
        return run.events[-EVENTS_SHOWN:]

    def event_counts(self, run: Run) -> list[tuple[str, int]]:
        return Counter(str(event.get("kind", "event")) for event in run.events).most_common()

    def _lines(self, metric: str) -> list[Line]:
        return [
            Line(run.name, index, *run.metrics[metric])
            for index, run in enumerate(self.runs)
            if metric in run.metrics and np.isfinite(run.metrics[metric][1]).any()
        ]
