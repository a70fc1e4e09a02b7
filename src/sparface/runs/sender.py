"""What brings a run's record to MLflow: a ledger of what it has, and the thread that sends the rest."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable
from itertools import islice
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from sparface.config import TrackingConfig
from sparface.errors import UserError
from sparface.files import inside, read_bounded
from sparface.runs.record import METRICS_FILE, Record, append_event, parse_record
from sparface.text import printable, without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEDGER_FILE = "tracking.json"
LEDGER_BYTES = 1 << 24
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first new attempt after a failure, doubling up to the longest."""
BATCH = 900
"""Metrics a request; MLflow takes 1,000."""
PARAM_LENGTH = 500
"""What every MLflow server stores of a parameter; config.yaml, an artifact, has it whole."""
KEY_TAG = "sparface.key"
SQLITE = "sqlite:///"
logger = logging.getLogger(__name__)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_table(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(of, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


LEDGER_FIELDS: dict[str, Callable[[Any], bool]] = {
    "key": lambda value: _is_text(value) and re.fullmatch("[0-9a-f]{32}", value) is not None,
    "run_id": lambda value: value is None or (_is_text(value) and value.isalnum()),
    "offset": _is_count,
    "artifacts": lambda value: _is_table(value, _is_count),
    "params": lambda value: _is_table(value, _is_text),
    **dict.fromkeys(("uri", "experiment", "run_name", "status", "told"), _is_text),
}
"""What the ledger holds, and whether a value may stand there."""


class Ledger:
    """RUN/tracking.json: which MLflow run this is, how much of the spool it has, what else waits.

    Written whole at each change, by two threads. `told` is the final status that MLflow has; `key` is
    a tag on the MLflow run, by which it is found again if a crash came between its creation and the
    note of its id. `uri` is for people to read: nobody connects to an address because a folder names it.
    """

    def __init__(self, file: Path, fields: dict[str, Any]) -> None:
        self._file, self._fields, self._lock = file, fields, threading.RLock()

    @classmethod
    def open(cls, folder: Path, uri: str, config: TrackingConfig, params: dict[str, Any]) -> Ledger:
        """The ledger of a run that starts or goes on; one that is damaged begins anew."""
        fields: dict[str, Any] = {"key": uuid.uuid4().hex, "run_id": None, "offset": 0, "artifacts": {}}
        with contextlib.suppress(OSError, UserError):
            fields = cls.read(folder)._fields
        spool = folder / METRICS_FILE
        if not spool.is_file() or spool.stat().st_size < fields["offset"]:
            fields["offset"] = 0
        ledger = cls(folder / LEDGER_FILE, fields)
        ledger.update(
            uri=without_login(uri),
            experiment=config.experiment,
            run_name=config.run_name or folder.resolve().name,
            params={name: _short(str(value)) for name, value in params.items()},
            status="RUNNING",
            told="",
        )
        return ledger

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """The ledger of a run. Raises `UserError` when it is damaged, `OSError` when there is none."""
        file = inside(folder, LEDGER_FILE)
        try:
            fields = json.loads(read_bounded(file, LEDGER_BYTES))
            sound = fields.keys() >= LEDGER_FIELDS.keys() and all(
                is_sound(fields[name]) for name, is_sound in LEDGER_FIELDS.items()
            )
        except (ValueError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise UserError(f"{file}: is damaged; delete it, and the run is sent as a new one")
        return cls(file, fields)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def update(self, **fields: Any) -> None:
        with self._lock:
            self._fields |= fields
            temporary = self._file.with_suffix(".tmp")
            with open(temporary, "w") as stream:
                json.dump(self._fields, stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.rename(self._file)

    def add_artifact(self, name: str) -> None:
        """Note that a file of the run, named by its path inside of it, is to be sent."""
        with self._lock:
            waiting = self["artifacts"]
            self.update(artifacts=waiting | {name: max(waiting.values(), default=0) + 1})

    def remove_artifact(self, name: str, turn: int) -> None:
        """Note that it was sent, unless it was added again since: then there is a newer file."""
        with self._lock:
            self.update(artifacts={n: t for n, t in self["artifacts"].items() if (n, t) != (name, turn)})


class Sender(threading.Thread):
    """Brings the spool and the artifacts to MLflow; tries again until it succeeds."""

    def __init__(self, folder: Path, ledger: Ledger, uri: str) -> None:
        super().__init__(name="tracking", daemon=True)
        self.folder, self.ledger, self._uri = folder, ledger, uri
        self._client: MlflowClient | None = None
        self._work, self._closing = threading.Event(), threading.Event()
        self._complete = False
        self._told: set[str] = set()

    def wake(self) -> None:
        self._work.set()

    def finish(self, timeout: float) -> bool:
        """One last delivery; whether MLflow has everything now."""
        self._closing.set()
        self.wake()
        self.join(timeout)
        return self._complete

    def run(self) -> None:
        pause, failures = FIRST_PAUSE, 0
        while not self._complete:
            self._work.wait()
            self._work.clear()
            last = self._closing.is_set()
            try:
                self.deliver()
                if failures:
                    logger.warning("MLflow at %s is back; it has everything", self.ledger["uri"])
                pause, failures, self._complete = FIRST_PAUSE, 0, last
            except Exception as error:
                self._client = None  # whoever answers next time may be another server
                failures += 1
                if failures == 1:
                    logger.warning("MLflow at %s: %s; metrics wait on disk", self.ledger["uri"], brief(error))
                if last:
                    return
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                self._work.set()

    def deliver(self) -> None:
        """Send everything that is on disk now. Raises whatever MLflow raises."""
        client = self._client = self._client or self._connect()
        run_id: str = self.ledger["run_id"]
        while True:
            records, end = _read_spool(self.folder / METRICS_FILE, self.ledger["offset"])
            if not records:
                break
            self._send(client, run_id, records)
            self.ledger.update(offset=end)
        for name, turn in list(self.ledger["artifacts"].items()):
            if (file := inside(self.folder, name)).is_file():
                client.log_artifact(run_id, str(file), name.rpartition("/")[0] or None)
            self.ledger.remove_artifact(name, turn)
        status = self.ledger["status"]
        if status not in ("RUNNING", self.ledger["told"]):  # telling it again would move the end
            client.set_terminated(run_id, status)
            self.ledger.update(told=status)

    def _connect(self) -> MlflowClient:
        """A client, with the run created or found, set running, and its parameters there."""
        client = _client(self._uri)
        run_id = self._open_run(client)
        if self.ledger["status"] == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        self._send_params(client, run_id)
        return client

    def _open_run(self, client: MlflowClient) -> str:
        known: str | None = self.ledger["run_id"]
        key: str = self.ledger["key"]
        if known and _is_active(client, known, key):
            _require_local_artifacts(client, known, self.folder)
            return known
        experiment = _experiment(client, self.ledger["experiment"], self.folder)
        found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        name = self.ledger["run_name"]
        run = found[0] if found else client.create_run(experiment, run_name=name, tags={KEY_TAG: key})
        run_id: str = run.info.run_id
        _require_local_artifacts(client, run_id, self.folder)
        if known:  # that server never had this run, or it was deleted there: it gets the whole of it
            pictures = sorted((self.folder / "previews").glob("*.png"))
            again = ["config.yaml", *(f"previews/{file.name}" for file in pictures)]
            self.ledger.update(artifacts={name: turn for turn, name in enumerate(again)})
        self.ledger.update(run_id=run_id, offset=0, told="")
        return run_id

    def _send_params(self, client: MlflowClient, run_id: str) -> None:
        """Parameters can't be changed in MLflow: new ones are added, changed ones become an event."""
        from mlflow.entities import Param

        there, here = client.get_run(run_id).data.params, self.ledger["params"]
        new = iter([Param(_clean(name), value) for name, value in here.items() if _clean(name) not in there])
        while chunk := list(islice(new, 100)):
            client.log_batch(run_id, params=chunk, synchronous=True)
        changed = [(n, there[_clean(n)], v) for n, v in here.items() if there.get(_clean(n), v) != v]
        for name, old, value in changed:
            message = f"{name} was {old}, is {value}"
            if message not in self._told:
                append_event(self.folder, {"kind": "parameter", "message": message})
            self._told.add(message)

    def _send(self, client: MlflowClient, run_id: str, records: Iterable[dict[str, Any]]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        metrics = [
            Metric(
                _clean(name), nan if value is None else value, int(record["time"] * 1000), record["images"]
            )
            for record in records
            for name, value in record.items()
            if name not in ("images", "time")
        ]
        try:
            client.log_batch(run_id, metrics=metrics, synchronous=True)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            # Sending the same again can't help, and must not keep back all that comes after.
            logger.warning("MLflow refuses %d metrics: %s", len(metrics), brief(error))
            append_event(self.folder, {"kind": "tracking", "message": f"refused: {brief(error)}"})


def _split(record: Record) -> tuple[int, float, Record]:
    """Images, time, and the metrics."""
    metrics = {name: value for name, value in record.items() if name not in ("images", "time")}
    return record["images"], record["time"], metrics


def _client(uri: str) -> MlflowClient:
    # MLflow's own patience (2 minutes a request, 7 times) would outlast the end of a training.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if uri.startswith(SQLITE) and not (database := Path(uri.removeprefix(SQLITE))).exists():
        _create_database(database)
    return MlflowClient(tracking_uri=uri)


def _create_database(path: Path) -> None:
    """MLflow's tables, in a file that appears whole: a job killed while MLflow makes them would leave
    some, and MLflow never gets over that. Of several jobs that want it at once, one makes it."""
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
        turn.unlink(missing_ok=True)  # nobody asks for it once the database is there


def _require_local_artifacts(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Raise `UserError` when the database beside the run, which may have come with it, sends artifacts
    elsewhere."""
    if client.tracking_uri != beside(folder):
        return
    place = urlparse(client.get_run(run_id).info.artifact_uri)
    around = folder.resolve().parent
    if place.scheme not in ("", "file") or not Path(unquote(place.path)).resolve().is_relative_to(around):
        raise UserError(
            f"{around / 'mlflow.db'}: keeps artifacts outside of {around}; "
            "set MLFLOW_TRACKING_URI to its address if it is yours"
        )


def beside(run_folder: Path) -> str:
    """The address of the database that the runs of a folder share."""
    return f"{SQLITE}{Path(run_folder).resolve().parent / 'mlflow.db'}"


def _experiment(client: MlflowClient, name: str, folder: Path) -> str:
    """The id of an experiment, created if need be; another process may be doing the same."""
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


def _is_active(client: MlflowClient, run_id: str, key: str) -> bool:
    """Whether the server has this very run: a folder may not name another of the user's runs."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
        return bool(run.info.lifecycle_stage == "active" and run.data.tags.get(KEY_TAG) == key)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _read_spool(file: Path, offset: int) -> tuple[list[Record], int]:
    """Complete records from `offset`, at most a batch of metrics (at least one record), and the
    offset behind them. Damaged lines are passed over."""
    records: list[Record] = []
    metrics = 0
    if not file.is_file():
        return records, offset
    with open(file, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                break
            record = parse_record(line) or {}
            metrics += len(record)
            if records and metrics > BATCH:
                break
            if record:
                records.append(record)
            offset += len(line)
    return records, offset


def _clean(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)


def _short(value: str) -> str:
    return value if len(value) <= PARAM_LENGTH else value[: PARAM_LENGTH - 1] + "…"


def brief(error: BaseException) -> str:
    """The cause in a few words: MLflow's connection errors quote whole call chains."""
    text = str(error).strip()
    for cause in ("connection refused", "timed out", "failed to resolve"):
        if cause in text.lower():
            return cause
    return printable(without_login((text.splitlines() or [type(error).__name__])[0]))[:200]
