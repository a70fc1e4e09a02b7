"""The outcome of a study: its page (HTML), docs/evidence.md (Markdown) and a file for programs (JSON)."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

import sparface
from sparface.files import write_whole
from sparface.report import charts
from sparface.report import compare as report
from sparface.report.compare import Picture
from sparface.study import pictures, tracking
from sparface.study.file import Experiment
from sparface.study.folder import StudyFolder
from sparface.study.intervals import Estimate
from sparface.study.results import Results
from sparface.study.tables import Sheet, sheets

REPORT, RUNS, MARKDOWN, EVIDENCE = "report.html", "runs.html", "evidence.md", "evidence.json"


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
    """Write report.html, runs.html, evidence.md and evidence.json from what is finished; also to MLflow.

    Returns the results of each experiment.
    """
    every = [Results(folder, experiment) for experiment in folder.study.experiments.values()]
    sections = [section(results) for results in every]
    facts = Facts(folder)
    write_whole(folder.path / REPORT, html(facts, sections).encode())
    write_whole(folder.path / MARKDOWN, markdown(facts, sections).encode())
    document = json.dumps(evidence(facts, every), indent=1, ensure_ascii=False)
    write_whole(folder.path / EVIDENCE, (document + "\n").encode())
    cells = [cell for one in every for arm in one.experiment.arms for cell in pictures.shown_cells(one, arm)]
    runs = [run for cell in cells if ((run := folder.plan.run(cell)) / "config.yaml").is_file()]
    if runs:
        report.compare(runs, folder.path / RUNS)
    tracking.send(folder, every, [folder.path / name for name in (REPORT, MARKDOWN, EVIDENCE)])
    return every


def section(results: Results) -> Section:
    found = sheets(results)
    drawn = list(pictures.drawn(results))
    return Section(results.experiment, found, drawn, list(pictures.faces(results)), results.unreadable)


class Facts:
    """What holds for the whole study."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder, self.study = folder, folder.study
        parts = folder.plan.parts.values()
        self.parts = len(parts)
        self.finished = sum(folder.finished(part) is not None for part in parts)
        self.made = f"sparface {sparface.__version__}, {datetime.date.today().isoformat()}"

    @property
    def commands(self) -> str:
        """The commands that make the study again."""
        data = "".join(f" --data {name}={name.upper()}" for name in self.study.data)
        size = f" --size {self.study.size}" if self.study.size else ""
        return f"sparface study {self.folder.settings['file']}{data}{size} --out STUDY"


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
    lines += [
        f"{facts.made}; {facts.finished} of {facts.parts} parts finished. Made by `sparface study`:",
        "",
    ]
    lines += ["```sh", facts.commands, "```", ""]
    for one in sections:
        lines += [f"## {plain(one.experiment.title)}", "", plain(one.experiment.about), ""]
        for sheet in one.sheets:
            lines += [f"### {plain(sheet.title)}", "", plain(sheet.note), "", *_markdown_table(sheet), ""]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


def _markdown_table(sheet: Sheet) -> Iterator[str]:
    yield "| " + " | ".join(map(plain, sheet.head)) + " |"
    yield "|" + "---|" * len(sheet.head)
    for row in sheet.rows:
        yield "| " + " | ".join(map(plain, row)) + " |"


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
        "parts": {"finished": facts.finished, "all": facts.parts},
    }
    for results in every:
        experiment, gains = results.experiment, results.experiment.gains
        if gains is None:
            continue
        entry: dict[str, Any] = {"arm": gains.arm, "metric": gains.metric}
        for name, arm in gains.over.items():
            gain = results.gain(gains.metric, gains.arm, arm)
            entry[f"gain_over_{name}"] = _estimate(gain) | {"arm": arm}
        arms = {gains.arm, *gains.over.values()}
        entry["settings"] = {
            name: {"config": arm.config, **arm.settings}
            for name, arm in experiment.arms.items()
            if name in arms
        }
        found[experiment.name] = entry
    return found


def _estimate(gain: Estimate | None) -> dict[str, Any]:
    """Write an estimate as JSON; null where nothing is known."""
    if gain is None:
        return {"mean": None, "low": None, "high": None, "seeds": 0}
    finite = {name: value if math.isfinite(value) else None for name, value in vars(gain).items()}
    return {name: finite[name] for name in ("mean", "low", "high", "seeds", "identities")}
