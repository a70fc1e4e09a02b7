"""Tracking: what a run measured, first on disk, then in MLflow.

`log` only appends to RUN/metrics.jsonl, which is the truth for reports and the spool for MLflow. All
MLflow traffic is in one background thread that reads the spool from an offset kept in
RUN/tracking.json. So a slow or dead server slows nothing, and what it missed is sent when it is back,
at the run's next start, or by `replay`.

Nothing arrives twice: a record keeps its time stamp, and MLflow's databases store a metric with the
same name, step, time and value once, so sending again after a crash changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil
import torch
from PIL import Image

from sparface.config import TrackingConfig
from sparface.errors import UserError
from sparface.training.run_folder import Busy, claim

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_FILE, EVENTS_FILE, LEDGER_FILE = "metrics.jsonl", "events.jsonl", "tracking.json"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first new attempt after a failure, doubling up to the longest."""
SYSTEM_PERIOD = 10.0
"""Least seconds between two readings of the machine."""
BATCH = 900
"""Metrics a request; MLflow takes 1,000."""
PARAM_LENGTH = 500
"""What every MLflow server stores of a parameter; config.yaml, an artifact, has it whole."""
KEY_TAG = "sparface.key"
SQLITE = "sqlite:///"
Status = Literal["FINISHED", "KILLED", "FAILED"]
logger = logging.getLogger(__name__)


class Tracker:
    """One run's record, kept by rank 0. With `active=False` (the other ranks) it does nothing.

    A run folder that was tracked before goes on as the same MLflow run, on the same step axis
    (images seen). `params` are shown in MLflow. The server is `tracking_uri(run_folder, config)`.
    """

    def __init__(
        self, run_folder: Path, config: TrackingConfig, *, params: dict[str, Any], active: bool = True
    ) -> None:
        self.folder = Path(run_folder)
        self.active = active
        self._sender: _Sender | None = None
        if not active:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._logged: dict[str, int] = {}
        for record in read_metrics(self.folder):
            self._logged.update(dict.fromkeys(record.keys() - {"images", "time"}, record["images"]))
        _drop_torn_line(self.folder / METRICS_FILE)
        self._spool = open(self.folder / METRICS_FILE, "a")  # noqa: SIM115  (closed by `close`)
        self._machine = _Machine(self.folder)
        if config.enabled:
            ledger = _Ledger.open(self.folder, config, params)
            self._sender = _Sender(self.folder, ledger, tracking_uri(self.folder, config))
            self._sender.start()
            self.artifact(self.folder / "config.yaml")

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the server has been reached for the first time."""
        return self._sender.ledger["run_id"] if self._sender else None

    def log(self, images_seen: int, metrics: dict[str, float]) -> None:
        """Append a record. Metrics already logged at or after `images_seen` are left out, so a run
        that resumes or rolls back and repeats some images logs nothing twice."""
        if not self.active:
            return
        new: dict[str, float | None] = {
            # JSON has no NaN: null stands for a value that is not finite
            k: float(v) if math.isfinite(v) else None
            for k, v in metrics.items()
            if images_seen > self._logged.get(k, -1)
        }
        if not new:
            return
        new |= self._machine.reading()
        self._logged.update(dict.fromkeys(new, images_seen))
        self._spool.write(json.dumps({"images": images_seen, "time": time.time(), **new}) + "\n")
        self._spool.flush()
        self._wake()

    def event(self, images_seen: int, kind: str, message: str, **facts: Any) -> None:
        """Append to RUN/events.jsonl: a journal in the order of time, never rewritten."""
        if self.active:
            _append_event(self.folder, {"images": images_seen, "kind": kind, "message": message, **facts})

    def picture(self, images_seen: int, name: str, image: np.ndarray) -> None:
        """Write RUN/previews/IMAGES-NAME.png from uint8 [H, W, 3] RGB (or [H, W] grey)."""
        if not self.active:
            return
        folder = self.folder / "previews"
        folder.mkdir(exist_ok=True)
        file = folder / f"{images_seen:09d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}.png"
        Image.fromarray(image).save(file)
        self.artifact(file, "previews")

    def artifact(self, path: Path, folder: str = "") -> None:
        """Send a file to the run's artifacts, below `folder`. A file that is missing is left out."""
        if self._sender is not None and path.is_file():
            self._sender.ledger.add_artifact(path.relative_to(self.folder), folder)
            self._wake()

    def close(self, status: Status = "FINISHED", timeout: float = 30.0) -> None:
        """End the run in MLflow with `status`, waiting at most `timeout` seconds for the server."""
        if not self.active:
            return
        self._spool.close()
        if self._sender is None:
            return
        if (self.folder / EVENTS_FILE).is_file():
            self._sender.ledger.add_artifact(Path(EVENTS_FILE), "")
        self._sender.ledger.update(status=status)
        if not self._sender.finish(timeout):
            logger.warning(
                "MLflow has not got everything of %s; send it with: sparface sync %s",
                self.folder,
                self.folder,
            )

    def _wake(self) -> None:
        if self._sender is not None:
            self._sender.wake()


def tracking_uri(run_folder: Path, config: TrackingConfig) -> str:
    """MLFLOW_TRACKING_URI, else `config.uri`, else a database beside the run folder that the runs
    beside it share."""
    beside = f"{SQLITE}{Path(run_folder).resolve().parent / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or config.uri or beside


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The records of RUN/metrics.jsonl, in order; a last line cut short by a crash is left out.

    Each has `images`, `time` (seconds since 1970) and its metrics, None where a metric was not finite;
    [] when there is no file. Raises
    `UserError` naming the line when another line is damaged.
    """
    file = Path(run_folder) / METRICS_FILE
    if not file.is_file():
        return []
    records = []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            records.append({**record, "images": int(record["images"])})
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{file}: line {number} is damaged; remove that line") from None
    return records


def add(run_folder: Path, images_seen: int, metrics: dict[str, float]) -> None:
    """Add what was measured outside of training, such as an evaluation, to a run's record and send it.

    When the run trains at this moment, its own tracker does the sending. What MLflow can't take now
    waits on disk; a warning says so.
    """
    record = {"images": images_seen, "time": time.time(), **metrics}
    with open(Path(run_folder) / METRICS_FILE, "a") as spool:
        spool.write(json.dumps(record) + "\n")
    if not (Path(run_folder) / LEDGER_FILE).is_file():
        return
    try:
        replay(run_folder)
    except Busy:
        pass
    except UserError as error:
        logger.warning("%s (sparface sync %s)", error, run_folder)


def replay(run_folder: Path) -> int:
    """Send to MLflow what is still waiting in a run's folder; the records that were.

    Raises `Busy` when the run trains at this moment, `UserError` when it was never tracked or the
    server can't be reached.
    """
    file = Path(run_folder) / LEDGER_FILE
    if not file.is_file():
        raise UserError(f"{run_folder}: was not tracked (no {LEDGER_FILE})")
    with claim(Path(run_folder), rank=0):
        ledger = _Ledger(file, json.loads(file.read_text()))
        before: int = ledger["offset"]
        uri = os.environ.get("MLFLOW_TRACKING_URI") or ledger["uri"]
        try:
            _Sender(Path(run_folder), ledger, uri).deliver()
        except Exception as error:
            raise UserError(f"MLflow at {uri}: {_brief(error)}; nothing is lost, try again") from None
    spool = Path(run_folder) / METRICS_FILE
    return spool.read_bytes()[before:].count(b"\n") if spool.is_file() else 0


class _Ledger:
    """RUN/tracking.json: which MLflow run this is, what of the spool it has, what else waits.

    Written whole at each change, by two threads. `told` is the final status that MLflow has; `key` is
    a tag on the MLflow run, by which it is found again if a crash came between its creation and the
    note of its id.
    """

    def __init__(self, file: Path, fields: dict[str, Any]) -> None:
        self._file, self._fields, self._lock = file, fields, threading.RLock()

    @classmethod
    def open(cls, folder: Path, config: TrackingConfig, params: dict[str, Any]) -> _Ledger:
        fields: dict[str, Any] = {"key": uuid.uuid4().hex, "run_id": None, "offset": 0, "artifacts": []}
        with contextlib.suppress(OSError, ValueError):
            fields |= json.loads((folder / LEDGER_FILE).read_text())
        spool = folder / METRICS_FILE
        if not spool.is_file() or spool.stat().st_size < fields["offset"]:
            fields["offset"] = 0
        ledger = cls(folder / LEDGER_FILE, fields)
        ledger.update(
            uri=_without_login(tracking_uri(folder, config)),
            experiment=config.experiment,
            run_name=config.run_name or folder.resolve().name,
            params={name: _short(str(value)) for name, value in params.items()},
            status="RUNNING",
            told="",
        )
        return ledger

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

    def add_artifact(self, file: Path, folder: str) -> None:
        entry = [file.as_posix(), folder]
        with self._lock:
            self.update(artifacts=[*(a for a in self["artifacts"] if a != entry), entry])

    def remove_artifact(self, entry: list[str]) -> None:
        """Take out this very entry: one that was added again since is of a newer file."""
        with self._lock:
            self.update(artifacts=[a for a in self["artifacts"] if a is not entry])


class _Sender(threading.Thread):
    """Brings the spool and the artifacts to MLflow; tries again until it succeeds."""

    def __init__(self, folder: Path, ledger: _Ledger, uri: str) -> None:
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
                    logger.warning(
                        "MLflow at %s: %s; metrics wait on disk", self.ledger["uri"], _brief(error)
                    )
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
        for entry in list(self.ledger["artifacts"]):
            client.log_artifact(run_id, str(self.folder / entry[0]), entry[1] or None)
            self.ledger.remove_artifact(entry)
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
        if known and _is_active(client, known):
            return known
        experiment, key = _experiment(client, self.ledger["experiment"], self.folder), self.ledger["key"]
        found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        name = self.ledger["run_name"]
        run = found[0] if found else client.create_run(experiment, run_name=name, tags={KEY_TAG: key})
        run_id: str = run.info.run_id
        if known:  # that server never had this run, or it was deleted there: it gets the whole of it
            pictures = sorted((self.folder / "previews").glob("*.png"))
            again = [["config.yaml", ""], *([f"previews/{file.name}", "previews"] for file in pictures)]
            self.ledger.update(artifacts=[a for a in again if (self.folder / a[0]).is_file()])
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
                _append_event(self.folder, {"kind": "parameter", "message": message})
            self._told.add(message)

    def _send(self, client: MlflowClient, run_id: str, records: Iterable[dict[str, Any]]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        metrics = [
            Metric(_clean(name), math.nan if value is None else value, int(record["time"] * 1000), record["images"])
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
            logger.warning("MLflow refuses %d metrics: %s", len(metrics), _brief(error))
            _append_event(self.folder, {"kind": "tracking", "message": f"refused: {_brief(error)}"})


class _Machine:
    """System metrics under MLflow's names, so that its page shows them as such."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._next = str(folder), time.monotonic()
        psutil.cpu_percent()  # the first reading is of no interval

    def reading(self) -> dict[str, float]:
        """Mean CPU use since the last reading, memory, disk, network and GPU; {} if it is too soon."""
        if time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + SYSTEM_PERIOD
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(self._folder)
        network = psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": memory.percent,
            "system_memory_usage_megabytes": memory.used / 1e6,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / 1e6,
        }
        if network is not None:
            found["network_receive_megabytes"] = network.bytes_recv / 1e6
            found["network_transmit_megabytes"] = network.bytes_sent / 1e6
        found |= _gpu_reading() if torch.cuda.is_available() else {}
        return {f"system/{name}": float(value) for name, value in found.items()}


def _gpu_reading() -> dict[str, float]:
    (free, total), gpu = torch.cuda.mem_get_info(), f"gpu_{torch.cuda.current_device()}"
    found = {
        f"{gpu}_memory_usage_megabytes": (total - free) / 1e6,
        f"{gpu}_memory_usage_percentage": 100 * (1 - free / total),
    }
    with contextlib.suppress(ImportError, RuntimeError):  # needs NVIDIA's management library
        found[f"{gpu}_utilization_percentage"] = float(torch.cuda.utilization())
        found[f"{gpu}_power_usage_watts"] = torch.cuda.power_draw() / 1000
    return found


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


def _is_active(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _read_spool(file: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Complete records from `offset`, at most a batch of metrics (at least one record), and the
    offset behind them."""
    records: list[dict[str, Any]] = []
    metrics = 0
    if not file.is_file():
        return records, offset
    with open(file, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            metrics += len(record) - 2
            if records and metrics > BATCH:
                break
            records.append(record)
            offset += len(line)
    return records, offset


def _drop_torn_line(file: Path) -> None:
    """Cut off what a crash left of a last line, so that the next one starts clean."""
    if file.is_file():
        data = file.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(file, data.rfind(b"\n") + 1)


def _append_event(folder: Path, event: dict[str, Any]) -> None:
    with open(folder / EVENTS_FILE, "a") as stream:
        stream.write(json.dumps({"time": time.time(), **event}) + "\n")


def _without_login(uri: str) -> str:
    """The URI as it may be written down and shown."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _clean(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)


def _short(value: str) -> str:
    return value if len(value) <= PARAM_LENGTH else value[: PARAM_LENGTH - 1] + "…"


def _brief(error: BaseException) -> str:
    """The cause in a few words: MLflow's connection errors quote whole call chains."""
    text = str(error).strip()
    for cause in ("connection refused", "timed out", "failed to resolve"):
        if cause in text.lower():
            return cause
    return (text.splitlines() or [type(error).__name__])[0][:200]
