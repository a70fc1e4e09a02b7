"""Tracking: metrics and lineage of a run, written to disk first and then sent to MLflow.

`log` only appends to RUN/metrics.jsonl, which is the source for reports and the spool for MLflow. Data sets
used and checkpoints made are appended to RUN/lineage.jsonl. All MLflow traffic is in one background thread
that reads the spools from offsets kept in RUN/tracking.json. So a slow or dead server does not slow down
training, and what it missed is sent when it is back, at the run's next start, or by `replay`.

Nothing arrives twice: a record keeps its timestamp, and MLflow stores a metric with the same name, step, time
and value once; runs and models are searched for before they are created. So resending after a crash changes
nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from sparface.config import TrackingConfig
from sparface.errors import UserError
from sparface.files import inside, write_whole
from sparface.runs import lineage
from sparface.runs.folder import Busy, claim
from sparface.runs.ledger import LEDGER_FILE, SPOOLS, Ledger
from sparface.runs.lineage import (
    Checkpoint,
    Dataset,
    Lineage,
    Use,
    dataset_record,
    exported_file,
    exported_record,
    measured_record,
)
from sparface.runs.mlflow_models import MlflowModels
from sparface.runs.mlflow_run import MlflowRun
from sparface.runs.record import EVENTS_FILE, Record, append_event, append_metrics, finite, read_metrics
from sparface.runs.sender import Sender
from sparface.runs.server import beside, brief, connect
from sparface.runs.system_metrics import SystemMetrics
from sparface.shards.set import ShardSet
from sparface.text import printable, without_login

Status = Literal["FINISHED", "KILLED", "FAILED"]
logger = logging.getLogger(__name__)


class Tracker:
    """Records one run, on rank 0. With `active=False` (the other ranks) it does nothing.

    A run folder that was tracked before continues the same MLflow run on the same step axis (images
    seen). `params` are shown in MLflow. The server is `tracking_uri(run_folder, config)`.
    """

    def __init__(
        self, run_folder: Path, config: TrackingConfig, *, params: dict[str, Any], active: bool = True
    ) -> None:
        self.folder = Path(run_folder)
        self.active = active
        self._sender: Sender | None = None
        self._lineage: Lineage | None = None
        if not active:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._logged: dict[str, int] = {}
        self._validation: Record = {}  # the last recorded one
        self._validated: dict[int, tuple[Dataset, dict[str, float], float]] = {}
        for record in read_metrics(self.folder):
            self._count(record)
        self._machine = SystemMetrics(self.folder)
        if config.enabled:
            self._lineage = Lineage(self.folder)
            self.look_at_checkpoints()
            uri = tracking_uri(self.folder, config.uri)
            # the name of a run is no parameter that runs are compared by
            params = {name: value for name, value in params.items() if not name.startswith("tracking.")}
            self._sender = Sender(self.folder, Ledger.open(self.folder, uri, config, params), uri)
            self._sender.start()
            self.artifact(self.folder / "config.yaml")

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the server is first reached."""
        return self._sender.ledger["run_id"] if self._sender else None

    def log(self, images_seen: int, metrics: dict[str, float]) -> None:
        """Append a record. Metrics already logged at or after `images_seen` are omitted, so a run
        that resumes or rolls back and repeats some images logs nothing twice."""
        if not self.active:
            return
        new = {k: float(v) for k, v in metrics.items() if images_seen > self._logged.get(k, -1)}
        if not new:
            return
        self._count(append_metrics(self.folder, images_seen, new | self._machine.reading()))
        self._wake()

    def validated(self, images_seen: int, figures: dict[str, float], shards: ShardSet) -> None:
        """Log the figures of a validation on a shard set. In MLflow, a checkpoint of the same networks that
        is published later gets them, too."""
        metrics = {f"validation/{name}": float(value) for name, value in figures.items()}
        self.log(images_seen, metrics)
        if self._lineage is None:
            return
        there = self._validation
        if there.get("images") == images_seen and all(there.get(n) == finite(v) for n, v in metrics.items()):
            self._validated[images_seen] = (Dataset.of(shards), metrics, there["time"])
        else:  # after a rollback, the recorded figures at this point are of other networks
            self._validated.pop(images_seen, None)

    def used(self, shards: ShardSet, use: Use) -> None:
        """Record a shard set that the run uses."""
        if self._lineage is not None:
            self._lineage.used(Dataset.of(shards), use)
            self._wake()

    def look_at_checkpoints(self) -> None:
        """Record checkpoints published and deleted since the last call. Thread-safe."""
        if self._lineage is None:
            return
        try:
            for checkpoint in self._lineage.look():
                if (found := self._validated.pop(checkpoint.images, None)) is not None:
                    lineage.append(self.folder, measured_record(checkpoint, *found))
        except (OSError, UserError) as error:  # the next call finds them
            logger.warning("%s: cannot record the state of the checkpoints (%s)", self.folder, error)
        self._wake()

    def event(self, images_seen: int, kind: str, message: str, **facts: Any) -> None:
        """Append to RUN/events.jsonl, a chronological log that is never rewritten."""
        if self.active:
            append_event(self.folder, {"images": images_seen, "kind": kind, "message": message, **facts})

    def picture(self, images_seen: int, name: str, image: np.ndarray) -> None:
        """Write RUN/previews/IMAGES-NAME.png from uint8 [H, W, 3] RGB (or [H, W] grey)."""
        if not self.active:
            return
        folder = self.folder / "previews"
        folder.mkdir(exist_ok=True)
        file = folder / f"{images_seen:09d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}.png"
        Image.fromarray(image).save(file)
        self.artifact(file)

    def artifact(self, path: Path) -> None:
        """Send a file of the run's folder to the run's artifacts; a missing file is ignored."""
        if self._sender is not None and path.is_file():
            self._sender.ledger.add_artifact(path.relative_to(self.folder).as_posix())
            self._wake()

    def close(self, status: Status = "FINISHED", timeout: float = 30.0) -> None:
        """End the run in MLflow with `status`, waiting at most `timeout` seconds for the server."""
        if not self.active:
            return
        if self._sender is None:
            return
        self.look_at_checkpoints()
        if (self.folder / EVENTS_FILE).is_file():
            self._sender.ledger.add_artifact(EVENTS_FILE)
        self._sender.ledger.update(status=status)
        if not self._sender.finish(timeout):
            logger.warning(
                "MLflow does not have all of %s yet; send the rest with: sparface sync %s",
                self.folder,
                self.folder,
            )

    def _count(self, record: Record) -> None:
        images: int = record["images"]
        self._logged |= dict.fromkeys(record.keys() - {"images", "time"}, images)
        if any(name.startswith("validation/") for name in record):
            self._validation = record

    def _wake(self) -> None:
        if self._sender is not None:
            self._sender.wake()


def tracking_uri(run_folder: Path, configured: str = "") -> str:
    """The MLflow server to use. Only the user names it, never a run's folder.

    MLFLOW_TRACKING_URI, else `tracking.uri` of the config that the user gives to `train`, else a database
    beside the run folder, which is shared by the runs beside it.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or configured or beside(run_folder)


def is_tracked(run_folder: Path) -> bool:
    """Whether a run was tracked with MLflow."""
    return (Path(run_folder) / LEDGER_FILE).is_file()


def add(
    run_folder: Path, images_seen: int, metrics: dict[str, float], *, of: Checkpoint, on: Dataset
) -> None:
    """Add the evaluation of a checkpoint on a data set to a run's record and send it.

    If the run is training now, its own tracker sends it. If MLflow cannot be reached, the evaluation waits on
    disk and a warning is logged.
    """
    record = append_metrics(run_folder, images_seen, metrics)
    if not is_tracked(run_folder):
        return
    lineage.append(run_folder, dataset_record(on, "evaluation"))
    lineage.append(run_folder, measured_record(of, on, metrics, record["time"]))
    send(run_folder)


def send(run_folder: Path) -> None:
    """Send what is waiting on disk. If the run is training now, its own tracker does so; a failure is logged
    as a warning."""
    try:
        replay(run_folder)
    except Busy:
        pass
    except UserError as error:
        logger.warning("%s (sparface sync %s)", error, run_folder)


def replay(run_folder: Path) -> int:
    """Send to MLflow what is waiting in a run's folder; return the number of records sent.

    Raises `Busy` if the run is training now, and `UserError` if it was never tracked, was tracked on a server
    that the user has not named this time, or if the server cannot be reached.
    """
    folder = Path(run_folder)
    if not is_tracked(folder):
        raise UserError(f"{run_folder}: was not tracked (no {LEDGER_FILE})")
    uri = tracking_uri(folder)
    require_named(Ledger.read(folder), folder, uri)
    with claim(folder, rank=0):
        ledger = Ledger.read(folder)  # read again: a training may have ended meanwhile
        before, known = ledger["sent"], ledger["run_id"]
        with _explained(uri):
            Sender(folder, ledger, uri).deliver()
    if ledger["run_id"] != known:  # the server had nothing of this run
        before = dict.fromkeys(SPOOLS, 0)
    return sum(_lines(inside(folder, name), before[name], ledger["sent"][name]) for name in SPOOLS)


def log_recognizer(
    run_folder: Path, checkpoint: Checkpoint, network: bytes, *, register: str = ""
) -> str | None:
    """Add an ONNX recognizer to its checkpoint's model in MLflow; return the model's URI.

    `network` is an ONNX file made by `servable.for_pictures`. Returns None if the run is not tracked or if
    MLflow cannot take the model now; then it waits on disk and a warning is logged. `register` names the
    registered model that gets a new version. Raises `UserError` if it cannot be registered.
    """
    folder = Path(run_folder)
    if not is_tracked(folder):
        return None
    file = inside(folder, exported_file(checkpoint))
    write_whole(file, network)
    lineage.append(folder, exported_record(checkpoint))
    send(folder)
    if file.exists():
        if register:
            raise UserError(
                f"{run_folder}: not registered as {register}, since MLflow does not have the model yet; "
                f"send it with sparface sync {run_folder}, then register it on MLflow's page"
            )
        return None
    uri = tracking_uri(folder)
    with _explained(uri):
        models = MlflowModels(MlflowRun.open(connect(uri), Ledger.read(folder), folder))
        if register:
            return models.register(checkpoint, register)
        return f"models:/{models.model_id(checkpoint)}"


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{brief(error)}; nothing is lost, try again"
        raise UserError(f"MLflow at {without_login(uri)}: {reason}") from None


def _lines(file: Path, start: int, end: int) -> int:
    """The number of lines of a file that end between two offsets, in bytes."""
    if not file.is_file():
        return 0
    with open(file, "rb") as stream:
        stream.seek(start)
        return sum(stream.read(min(1 << 20, end - at)).count(b"\n") for at in range(start, end, 1 << 20))


def require_named(ledger: Ledger, folder: Path, uri: str) -> None:
    """Raise `UserError` if a run was tracked on another server and the user has not named one."""
    if uri == beside(folder) != ledger["uri"]:
        raise UserError(
            f"{folder}: was tracked at {printable(ledger['uri'])}; set MLFLOW_TRACKING_URI to your "
            "server, since an address in a run's folder is not trusted"
        )
