"""A run in MLflow: finding or creating it, and logging metrics, parameters and files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from itertools import islice
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparface.runs.ledger import Ledger
from sparface.runs.record import Record, append_event
from sparface.runs.server import brief, experiment_id, require_local

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

BATCH = 900
"""Metrics per request; MLflow accepts 1,000."""
KEY_TAG = "sparface.key"
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""MLflow's error codes for requests that it will never accept, so retrying is useless."""
logger = logging.getLogger(__name__)


class MlflowRun:
    """One run on one server. Methods raise MLflow's errors."""

    def __init__(self, client: MlflowClient, run_id: str, folder: Path) -> None:
        self.client, self.run_id, self.folder = client, run_id, folder

    @classmethod
    def open(cls, client: MlflowClient, ledger: Ledger, folder: Path) -> MlflowRun:
        """Find or create the run of a ledger, and record it there. Raises `UserError` if a local database
        stores its artifacts elsewhere."""
        known: str | None = ledger["run_id"]
        if known and is_active(client, known, ledger["key"]):
            require_local(client, client.get_run(known).info.artifact_uri, folder)
            return cls(client, known, folder)
        run = _found_or_created(client, ledger, folder)
        require_local(client, run.info.artifact_uri, folder)
        if known:  # the server never had this run, or deleted it: send everything
            pictures = sorted((folder / "previews").glob("*.png"))
            again = ["config.yaml", *(f"previews/{file.name}" for file in pictures)]
            ledger.update(artifacts={name: turn for turn, name in enumerate(again)})
        ledger.begin_anew(run.info.run_id)
        return cls(client, run.info.run_id, folder)

    def log_records(self, records: Iterable[Record]) -> None:
        """Log the metrics of records."""
        from mlflow.entities import Metric

        self.log_metrics(
            [
                Metric(clean(name), nan if value is None else value, milliseconds(record), record["images"])
                for record in records
                for name, value in record.items()
                if name not in ("images", "time")
            ]
        )

    def log_metrics(self, metrics: list[Metric]) -> None:
        """Log metrics. A rejection by MLflow becomes an event, so it does not hold back later metrics."""
        from mlflow.exceptions import MlflowException

        for start in range(0, len(metrics), BATCH):
            batch = metrics[start : start + BATCH]
            try:
                self.client.log_batch(self.run_id, metrics=batch, synchronous=True)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                self.refused(f"{len(batch)} metrics", error)

    def refused(self, what: str, error: Exception) -> None:
        """Report something that MLflow will never accept."""
        logger.warning("MLflow rejected %s: %s", what, brief(error))
        append_event(self.folder, {"kind": "tracking", "message": f"rejected: {brief(error)}"})

    def log_params(self, params: dict[str, str]) -> list[str]:
        """Add new parameters. MLflow can't change existing ones; return a message for each that differs."""
        from mlflow.entities import Param

        there = self.client.get_run(self.run_id).data.params
        new = iter([Param(clean(name), value) for name, value in params.items() if clean(name) not in there])
        while chunk := list(islice(new, 100)):
            self.client.log_batch(self.run_id, params=chunk, synchronous=True)
        changed = [(n, there[clean(n)], v) for n, v in params.items() if there.get(clean(n), v) != v]
        return [f"{name} was {old}, is {value}" for name, old, value in changed]

    def log_file(self, file: Path, name: str) -> None:
        """Log a file under its path within the run's folder."""
        self.client.log_artifact(self.run_id, str(file), name.rpartition("/")[0] or None)


def milliseconds(record: Record) -> int:
    """The timestamp of a record for MLflow, identical each time that it is sent."""
    return int(record["time"] * 1000)


def clean(name: str) -> str:
    """Replace the characters that MLflow does not accept in names."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)


def _found_or_created(client: MlflowClient, ledger: Ledger, folder: Path) -> Any:
    experiment, key = experiment_id(client, ledger["experiment"], folder), ledger["key"]
    if found := client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1):
        return found[0]
    return client.create_run(experiment, run_name=ledger["run_name"], tags={KEY_TAG: key})


def is_active(client: MlflowClient, run_id: str, key: str) -> bool:
    """Whether the server has this run. A folder must not name another run of the user's."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
        return bool(run.info.lifecycle_stage == "active" and run.data.tags.get(KEY_TAG) == key)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
