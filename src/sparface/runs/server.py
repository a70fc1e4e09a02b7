"""An MLflow server, or the SQLite database beside the runs that replaces one."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from sparface.errors import UserError
from sparface.text import printable, without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"


def beside(run_folder: Path) -> str:
    """The URI of the database shared by the runs of a folder."""
    return f"{SQLITE}{Path(run_folder).resolve().parent / 'mlflow.db'}"


def connect(uri: str) -> MlflowClient:
    """Create a client, and the database if it is missing. A server is first contacted by a request."""
    # MLflow's defaults (2 minutes per request, 7 retries) would outlast the end of a training
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if uri.startswith(SQLITE) and not (database := Path(uri.removeprefix(SQLITE))).exists():
        _create_database(database)
    return MlflowClient(tracking_uri=uri)


def _create_database(path: Path) -> None:
    """Create MLflow's database atomically: if a job is killed while MLflow creates the tables, MLflow cannot
    recover from a partial set. Of several concurrent jobs, one creates it."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    new, turn = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.lock")
    with open(turn, "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not path.exists():
            for left in (new, new.with_name(f"{new.name}-journal")):
                left.unlink(missing_ok=True)
            MlflowClient(tracking_uri=f"{SQLITE}{new}").search_experiments(max_results=1)
            new.rename(path)
        turn.unlink(missing_ok=True)  # not needed once the database exists


def require_local(client: MlflowClient, place: str, folder: Path) -> None:
    """Raise `UserError` if the database beside the run, which may come from the same stranger, stores
    artifacts anywhere but beside the run; `place` is where it stores them."""
    if client.tracking_uri != beside(folder):
        return
    url, around = urlparse(place), folder.resolve().parent
    if url.scheme not in ("", "file") or not Path(unquote(url.path)).resolve().is_relative_to(around):
        raise UserError(
            f"{around / 'mlflow.db'}: stores artifacts outside of {around}; "
            "set MLFLOW_TRACKING_URI to its address if it is yours"
        )


def experiment_id(client: MlflowClient, name: str, folder: Path) -> str:
    """The id of an experiment, which is created if missing; another process may do so concurrently."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = client.tracking_uri.startswith("sqlite")
    artifacts = (folder.resolve().parent / "mlartifacts").as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)


def brief(error: BaseException) -> str:
    """The cause of an error in a few words: MLflow's connection errors quote whole call chains."""
    text = str(error).strip()
    for cause in ("connection refused", "timed out", "failed to resolve"):
        if cause in text.lower():
            return cause
    return printable(without_login((text.splitlines() or [type(error).__name__])[0]))[:200]
