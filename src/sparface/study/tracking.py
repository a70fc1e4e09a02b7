"""A study in MLflow: a parent run with the summary, whose child runs are the trainings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparface.config import TrackingConfig
from sparface.errors import UserError
from sparface.runs.ledger import Ledger
from sparface.runs.mlflow_run import MlflowRun, clean, is_active
from sparface.runs.server import brief, connect
from sparface.runs.tracking import require_named, tracking_uri
from sparface.study.folder import StudyFolder
from sparface.study.page import EVIDENCE, MARKDOWN, REPORT, markdown_table, plain
from sparface.study.plan import Cell
from sparface.study.results import Results
from sparface.study.tables import UNSHOWN, claims, gains

PARENT, DESCRIPTION = "mlflow.parentRunId", "mlflow.note.content"
"""MLflow's tags for the parent of a run, and for the text on its page."""
LONGEST = 4900
"""Characters of a description; MLflow takes tags of 5,000."""
FILES = (REPORT, MARKDOWN, EVIDENCE)
logger = logging.getLogger(__name__)


def send(folder: StudyFolder, every: Sequence[Results]) -> None:
    """Group the tracked trainings of a study under one run that has its verdicts, mean figures and report.

    Does nothing if no training was tracked. If MLflow cannot be reached, a warning is logged.
    """
    children = list(tracked(folder, every))
    if not children:
        return
    try:
        _send(folder, every, children)
    except Exception as error:
        logger.warning("MLflow: %s; the study's summary was not sent, run the study again", brief(error))


def tracked(folder: StudyFolder, every: Sequence[Results]) -> Iterator[tuple[Cell, Ledger]]:
    """Yield the trainings that have a run in MLflow, with its ledger."""
    for results in every:
        for cell in results.cells:
            try:
                ledger = Ledger.read(folder.own(folder.plan.run(cell)))
            except (OSError, UserError):
                continue
            if ledger["run_id"]:
                yield cell, ledger


def _send(folder: StudyFolder, every: Sequence[Results], children: list[tuple[Cell, Ledger]]) -> None:
    own = folder.own(own_run(folder))
    own.mkdir(exist_ok=True)
    uri = tracking_uri(own)
    for _, ledger in children:
        require_named(ledger, own, uri)
    config = TrackingConfig(experiment=folder.study.title, run_name="study")
    run = MlflowRun.open(connect(uri), Ledger.open(own, uri, config, {}), own)
    for cell, ledger in children:
        if is_active(run.client, ledger["run_id"], ledger["key"]):
            for name, value in {PARENT: run.run_id, **tags(cell)}.items():
                run.client.set_tag(ledger["run_id"], name, value)
    run.client.set_tag(run.run_id, DESCRIPTION, description(every))
    run.log_metrics(list(_metrics(every)))
    for name in FILES:
        run.client.log_artifact(run.run_id, str(folder.resolved / name))
    run.client.set_terminated(run.run_id, "FINISHED")


def description(every: Sequence[Results]) -> str:
    """Return the verdicts and gains of all experiments as Markdown, which MLflow shows on the run's page."""
    lines = []
    for results in every:
        lines += [f"**{plain(results.experiment.title)}**", ""]  # the page folds what is further below
        for sheet in (claims(results), gains(results)):
            lines += [*markdown_table(sheet), ""] if sheet.rows else []
    text = "\n".join(lines)
    if len(text) > LONGEST:
        text = text[:LONGEST].rpartition("\n")[0] + f"\n\n… ({MARKDOWN} has all of it)"
    return text


def own_run(folder: StudyFolder) -> Path:
    """The study's own run: beside the trainings, whose database it shares."""
    return folder.resolved / "runs" / "study"


def tags(cell: Cell) -> dict[str, str]:
    """Return what distinguishes a training, as columns of MLflow's tables."""
    named = {"experiment": cell.experiment, "arm": cell.arm, "trained_on": cell.on}
    named |= {"budget": str(cell.images), "seed": str(cell.seed)}
    return {name: value for name, value in named.items() if value}


def _metrics(every: Sequence[Results]) -> Iterator[Any]:
    """Yield the mean over all seeds of every figure, named EXPERIMENT/ARM/EVALUATION.METRIC, by budget."""
    from mlflow.entities import Metric

    for results in every:
        newest = int(1000 * max((part.at for part in results.done.values()), default=0))
        seeds = len(results.experiment.seeds)
        shown = {name: table for name, table in results.figures.items() if not name.endswith(UNSHOWN)}
        for name, table in shown.items():
            for setting in table:
                mean = results.mean(name, setting)
                if mean and mean.seeds == seeds and setting.on in ("", results.main_set):
                    key = clean(f"{results.experiment.name}/{setting.arm}/{name}")
                    yield Metric(key, mean.mean, newest, setting.images)
