"""A study in MLflow: a parent run with the summary, whose child runs are the trainings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparface.config import TrackingConfig
from sparface.errors import UserError
from sparface.runs.ledger import Ledger
from sparface.runs.mlflow_run import MlflowRun, clean
from sparface.runs.server import brief, connect
from sparface.runs.tracking import is_tracked, tracking_uri
from sparface.study.folder import StudyFolder
from sparface.study.plan import Cell
from sparface.study.results import Results

PARENT = "mlflow.parentRunId"
"""MLflow's tag of a child run."""
logger = logging.getLogger(__name__)


def send(folder: StudyFolder, every: Sequence[Results], files: Sequence[Path]) -> None:
    """Group the tracked trainings of a study under one run that has their mean figures, and the files.

    Does nothing if no training was tracked. If MLflow cannot be reached, a warning is logged.
    """
    children = list(tracked(folder, every))
    if not children:
        return
    try:
        _send(folder, every, children, files)
    except Exception as error:
        logger.warning("MLflow: %s; the study's summary was not sent, write the report again", brief(error))


def tracked(folder: StudyFolder, every: Sequence[Results]) -> Iterator[tuple[Cell, str]]:
    """Yield the trainings that have a run in MLflow, and its id."""
    for results in every:
        for cell in results.cells:
            if is_tracked(folder.plan.run(cell)):
                try:
                    run_id = Ledger.read(folder.plan.run(cell))["run_id"]
                except (OSError, UserError):
                    continue
                if run_id:
                    yield cell, run_id


def _send(
    folder: StudyFolder, every: Sequence[Results], children: list[tuple[Cell, str]], files: Sequence[Path]
) -> None:
    own = own_run(folder)
    own.mkdir(exist_ok=True)
    uri = tracking_uri(own)
    config = TrackingConfig(experiment=folder.study.title, run_name="study")
    ledger = Ledger.open(own, uri, config, {})
    run = MlflowRun.open(connect(uri), ledger, own)
    for cell, run_id in children:
        for name, value in {PARENT: run.run_id, **tags(cell)}.items():
            run.client.set_tag(run_id, name, value)
    run.log_metrics(list(_metrics(every)))
    for file in files:
        run.client.log_artifact(run.run_id, str(file))
    run.client.set_terminated(run.run_id, "FINISHED")


def own_run(folder: StudyFolder) -> Path:
    """The study's own run: beside the trainings, whose database it shares."""
    return folder.path / "runs" / "study"


def tags(cell: Cell) -> dict[str, str]:
    """Return what distinguishes a training, as columns of MLflow's tables."""
    named = {"experiment": cell.experiment, "arm": cell.arm, "trained_on": cell.on}
    return named | {"budget": str(cell.images), "seed": str(cell.seed)}


def _metrics(every: Sequence[Results]) -> Iterator[Any]:
    """Yield the mean over seeds of every figure, named EXPERIMENT/ARM/EVALUATION.METRIC, by budget."""
    from mlflow.entities import Metric

    for results in every:
        finished = [results.folder.finished(part) for part in results.folder.plan.parts.values()]
        newest = int(1000 * max((time for time in finished if time is not None), default=0))
        for name, table in results.figures.items():
            for setting in table:
                mean = results.mean(name, setting)
                if mean is not None and setting.on in ("", results.main_set):
                    key = clean(f"{results.experiment.name}/{setting.arm}/{name}")
                    yield Metric(key, mean.mean, newest, setting.images)
