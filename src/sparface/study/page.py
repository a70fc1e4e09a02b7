"""The outcome of a study: its page (HTML), docs/evidence.md (Markdown) and a file for programs (JSON)."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

import sparface
from sparface.files import write_whole
from sparface.report import charts
from sparface.report import compare as report
from sparface.report.compare import Picture
from sparface.study import pictures
from sparface.study.file import Experiment
from sparface.study.folder import StudyFolder
from sparface.study.intervals import Estimate
from sparface.study.plan import Part
from sparface.study.results import Results
from sparface.study.tables import Sheet, sheets
from sparface.text import printable

REPORT, RUNS, MARKDOWN, EVIDENCE = "report.html", "runs.html", "evidence.md", "evidence.json"
MISSING_SHOWN = 50


@dataclass
class Section:
    """An experiment on the page."""

    experiment: Experiment
    sheets: list[Sheet]
    charts: list[Picture] = field(default_factory=list)
    faces: list[tuple[str, list[Picture]]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def colour(self, arm: str) -> str:
        names = list(self.experiment.arms)
        return charts.colour(names.index(arm)) if arm in names else "inherit"


def write_report(folder: StudyFolder) -> list[Results]:
    """Write report.html, runs.html, evidence.md and evidence.json from what is finished.

    Reads the study's folder only. Returns the results of all experiments.
    """
    facts = Facts(folder)
    every = [Results(folder, experiment, facts.done) for experiment in folder.study.experiments.values()]
    sections = [section(results) for results in every]
    write_whole(folder.path / REPORT, html(facts, sections).encode(errors="replace"))
    write_whole(folder.path / MARKDOWN, markdown(facts, sections).encode(errors="replace"))
    document = json.dumps(evidence(facts, every), indent=1, ensure_ascii=False)
    write_whole(folder.path / EVIDENCE, (document + "\n").encode())
    shown = [one.run(cell) for one in every for arm in one.experiment.arms
             for cell in pictures.shown_cells(one, arm)]  # fmt: skip
    if runs := [run for run in shown if run]:
        write_whole(folder.path / RUNS, report.render(runs).encode(errors="replace"))
    return every


def section(results: Results) -> Section:
    found = sheets(results)
    drawn = list(pictures.drawn(results))
    return Section(results.experiment, found, drawn, list(pictures.faces(results)), results.unreadable)


class Facts:
    """What holds for the whole study."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder, self.study, self.parts = folder, folder.study, folder.plan.parts
        self.done = folder.done()
        self.missing = [part for name, part in self.parts.items() if name not in self.done]
        self.made = f"sparface {sparface.__version__}, {datetime.date.today().isoformat()}"

    @property
    def commands(self) -> str:
        """The commands that make the study again."""
        data = "".join(f" --data {name}={name.upper()}" for name in self.study.data)
        size = f" --size {self.study.size}" if self.study.size else ""
        return f"sparface study {printable(self.folder.settings['file'])}{data}{size} --out STUDY"

    @cached_property
    def missing_sheet(self) -> Sheet:
        """The parts that have not finished, and why."""
        rows = [(part.name, self._state(part)) for part in self.missing[:MISSING_SHOWN]]
        more = len(self.missing) - len(rows)
        note = "What needs them is left out below, or shown as it is so far."
        return Sheet(
            "Missing parts", note + (f" And {more:,} more." if more else ""), ("part", "state"), rows
        )

    def _state(self, part: Part) -> str:
        if lost := [name for name in part.needs if name not in self.done]:
            return f"needs {lost[0]}"
        record = self.folder.record(part)
        if record is None:
            return "not finished"
        code, tries = record.attempts[-1]["code"], len(record.attempts)
        return (
            f"attempt {tries} ended with exit code {code}" if code else "to run again: something has changed"
        )


def html(facts: Facts, sections: list[Section]) -> str:
    folders = [Path(__file__).parent, Path(report.__file__).parent]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.tests["number_like"] = lambda text: text[:1] in "0123456789+−—"
    return environment.get_template("study.html").render(facts=facts, sections=sections)


def markdown(facts: Facts, sections: list[Section]) -> str:
    """Write the same tables as Markdown, without pictures."""
    lines = [f"# {plain(facts.study.title)}", "", plain(facts.study.about), ""]
    finished = f"{len(facts.done)} of {len(facts.parts)} parts finished"
    lines += [f"{facts.made}; {finished}. Made by `sparface study`:", ""]
    lines += ["```sh", facts.commands, "```", ""]
    if facts.missing:
        lines += markdown_sheet(facts.missing_sheet, 2)
    for one in sections:
        lines += [f"## {plain(one.experiment.title)}", "", plain(one.experiment.about), ""]
        for sheet in one.sheets:
            lines += markdown_sheet(sheet, 3)
        if one.unreadable:
            lines += [plain(f"Unreadable: {', '.join(one.unreadable)}"), ""]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


def markdown_sheet(sheet: Sheet, level: int) -> list[str]:
    """Write a table with its title and note as lines of Markdown."""
    title = "#" * level + " " + plain(sheet.title)
    return [title, "", plain(sheet.note), "", *markdown_table(sheet), ""]


def markdown_table(sheet: Sheet) -> list[str]:
    head, *rows = [" | ".join(["", *map(plain, row), ""]).strip() for row in (sheet.head, *sheet.rows)]
    return [head, "|" + "---|" * len(sheet.head), *rows]


def plain(text: str) -> str:
    """Put a text on one line and escape what would end a cell or start markup."""
    line = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|<[`*_":
        line = line.replace(mark, "\\" + mark)
    return line


def evidence(facts: Facts, every: list[Results]) -> dict[str, Any]:
    """Collect the gains that a study file names, for programs: experiment → `gain_over_NAME`."""
    found: dict[str, Any] = {
        "title": facts.study.title,
        "made_by": facts.made,
        "command": facts.commands,
        "size": facts.study.size,
        "parts": {"finished": len(facts.done), "all": len(facts.parts)},
        "missing": [part.name for part in facts.missing],
    }
    for results in every:
        experiment, gains = results.experiment, results.experiment.gains
        if gains is None:
            continue
        entry: dict[str, Any] = {"arm": gains.arm, "metric": gains.metric}
        for name, (arm, metric) in gains.over.items():
            gain = results.gain(gains.metric, gains.arm, arm, than_metric=metric)
            missing = results.missing(gains.metric, [gains.arm]) + results.missing(metric, [arm])
            entry[f"gain_over_{name}"] = {"arm": arm, "metric": metric, **_gain(gain, sorted({*missing}))}
        metrics = dict(gains.over.values()) | {gains.arm: gains.metric}
        entry["settings"] = {arm: _settings(results, metric, arm) for arm, metric in metrics.items()}
        found[experiment.name] = entry
    return found


def _settings(results: Results, metric: str, name: str) -> dict[str, Any]:
    """Return what an arm is, with the budget at which it is compared."""
    arm, best = results.experiment.arms[name], results.at(metric, name, results.main_set)
    if arm.checkpoint:
        return {"checkpoint": arm.checkpoint}
    return {"config": arm.config, **arm.settings, "schedule.images": best.images if best else None}


def _gain(gain: Estimate | None, missing: Sequence[str]) -> dict[str, Any]:
    """Write a gain as JSON: null where nothing is known, or where parts that it needs are missing."""
    if not missing:
        return _estimate(gain)
    return _estimate(None) | {"missing": list(missing), "so_far": _estimate(gain)}


def _estimate(gain: Estimate | None) -> dict[str, Any]:
    if gain is None:
        return {"mean": None, "low": None, "high": None, "seeds": 0}
    finite = {name: value if math.isfinite(value) else None for name, value in vars(gain).items()}
    return {name: finite[name] for name in ("mean", "low", "high", "seeds", "identities")}
