"""The thread that sends the spools, the files and the final status of a run from disk to MLflow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.files import inside
from sparface.runs.ledger import Ledger
from sparface.runs.lineage import LINEAGE_FILE, parse_lineage
from sparface.runs.mlflow_models import MlflowModels
from sparface.runs.mlflow_run import BATCH, MlflowRun
from sparface.runs.record import MAX_BYTES, METRICS_FILE, append_event, parse_record
from sparface.runs.server import brief, connect
from sparface.text import without_login

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first retry, and the maximum that the pause doubles up to."""
LONGEST_LINE = 1 << 20
"""Maximum bytes of a line of a spool; a longer line is damaged."""
logger = logging.getLogger(__name__)


class Sender(threading.Thread):
    """Sends the spools and the artifacts to MLflow; retries until it succeeds."""

    def __init__(self, folder: Path, ledger: Ledger, uri: str) -> None:
        super().__init__(name="tracking", daemon=True)
        self.folder, self.ledger, self._uri = folder, ledger, uri
        self._run: MlflowRun | None = None
        self._models: MlflowModels | None = None
        self._work, self._closing = threading.Event(), threading.Event()
        self._complete = False
        self._told: set[str] = set()

    def wake(self) -> None:
        self._work.set()

    def finish(self, timeout: float) -> bool:
        """Send what is left; return whether MLflow has everything within `timeout` seconds."""
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
                    logger.warning("MLflow at %s is back; everything was sent", self.ledger["uri"])
                pause, failures, self._complete = FIRST_PAUSE, 0, last
            except Exception as error:
                self._run = None  # another server may answer next time
                failures += 1
                if failures == 1:
                    logger.warning("MLflow at %s: %s; metrics wait on disk", self.ledger["uri"], brief(error))
                if last:
                    return
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                self._work.set()

    def deliver(self) -> None:
        """Send everything that is on disk now. Raises MLflow's errors."""
        run = self._run = self._run or self._open()
        self._empty(METRICS_FILE, parse_record, run.log_records, BATCH)
        for name, turn in list(self.ledger["artifacts"].items()):
            if (file := inside(self.folder, name)).is_file():
                run.log_file(file, name)
            self.ledger.remove_artifact(name, turn)
        status = self.ledger["status"]
        if status not in ("RUNNING", self.ledger["told"]):  # sending it again would change the end time
            run.client.set_terminated(run.run_id, status)
            self.ledger.update(told=status)
        self._send_lineage()

    def _open(self) -> MlflowRun:
        """Open the run, mark it as running, and log its parameters."""
        run = MlflowRun.open(connect(self._uri), self.ledger, self.folder)
        if self.ledger["status"] == "RUNNING":
            run.client.update_run(run.run_id, status="RUNNING")
        for message in run.log_params(self.ledger["params"]):
            if message not in self._told:
                append_event(self.folder, {"kind": "parameter", "message": message})
            self._told.add(message)
        self._models = MlflowModels(run)
        return run

    def _send_lineage(self) -> None:
        """Send the lineage, last, so it holds nothing else back. A server older than MLflow 3 has no models:
        the checkpoints wait on disk for a newer one."""
        from mlflow.exceptions import MlflowException

        if (models := self._models) is None:
            return
        try:
            self._empty(LINEAGE_FILE, parse_lineage, models.send, 1)
        except MlflowException as error:
            if error.error_code != "ENDPOINT_NOT_FOUND":
                raise
            self._models = None
            logger.warning(
                "MLflow at %s is older than 3 and has no models: checkpoints wait on disk for a newer server",
                without_login(self._uri),
            )

    def _empty(
        self,
        spool: str,
        parse: Callable[[bytes], dict[str, Any] | None],
        send: Callable[[list[dict[str, Any]]], object],
        batch: int,
    ) -> None:
        """Send the rest of a spool, at most `batch` fields (but at least one record) at once."""
        while True:
            records, end = _read(inside(self.folder, spool), self.ledger["sent"][spool], parse, batch)
            if not records:
                return
            send(records)
            self.ledger.add_sent(spool, end)


def _read(
    file: Path, offset: int, parse: Callable[[bytes], dict[str, Any] | None], batch: int
) -> tuple[list[dict[str, Any]], int]:
    """Read complete records from `offset`; return them and the offset after them. Skips damaged lines.

    Raises `UserError` if the file is larger than a spool may be.
    """
    records: list[dict[str, Any]] = []
    fields = 0
    if not file.is_file():
        return records, offset
    if file.stat().st_size > MAX_BYTES:
        raise UserError(f"{file}: has more than {MAX_BYTES:,} bytes, which is too large for a run's record")
    with open(file, "rb") as stream:
        stream.seek(offset)
        while line := stream.readline(LONGEST_LINE):
            if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                break
            record = parse(line) or {}
            fields += len(record)
            if records and fields > batch:
                break
            if record:
                records.append(record)
            offset += len(line)
    return records, offset
