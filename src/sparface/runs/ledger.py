"""The ledger of a run: its MLflow run, and how much has been sent to it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import uuid
from pathlib import Path
from typing import Any

from sparface.config import TrackingConfig
from sparface.errors import UserError
from sparface.files import inside, read_bounded, write_whole
from sparface.forms import COUNT, fits, parsed
from sparface.runs.lineage import LINEAGE_FILE
from sparface.runs.record import METRICS_FILE
from sparface.text import without_login

LEDGER_FILE = "tracking.json"
MAX_BYTES = 1 << 24
PARAM_LENGTH = 500
"""Characters of a parameter that every MLflow server stores; the config.yaml artifact has the full value."""
SPOOLS = (METRICS_FILE, LINEAGE_FILE)
LEDGER = {
    "key": re.compile("[0-9a-f]{32}"),
    "run_id": (None, re.compile("[0-9A-Za-z]+")),
    "sent": dict.fromkeys(SPOOLS, COUNT),
    "artifacts": {str: COUNT},
    "params": {str: str},
    **dict.fromkeys(("uri", "experiment", "run_name", "status", "told"), str),
}


class Ledger:
    """RUN/tracking.json: the MLflow run, how much of the spools it has, and what else is to be sent.

    Two threads write it, each time as a whole. `sent` is the number of bytes of each spool that MLflow has,
    and `told` the final status that it has. `key` is a tag of the MLflow run, used to find it again after a
    crash between its creation and the recording of its id. `uri` is informational: an address named by a
    folder is never contacted.
    """

    def __init__(self, file: Path, fields: dict[str, Any]) -> None:
        self._file, self._fields, self._lock = file, fields, threading.RLock()

    @classmethod
    def open(cls, folder: Path, uri: str, config: TrackingConfig, params: dict[str, Any]) -> Ledger:
        """Open the ledger of a run that starts or resumes; a damaged one is replaced by a new one."""
        fields: dict[str, Any] = {"key": uuid.uuid4().hex, "run_id": None, "artifacts": {}}
        fields["sent"] = dict.fromkeys(SPOOLS, 0)
        with contextlib.suppress(OSError, UserError):
            fields = cls.read(folder)._fields
        for name in SPOOLS:
            if not (folder / name).is_file() or (folder / name).stat().st_size < fields["sent"][name]:
                fields["sent"][name] = 0
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
        """Read the ledger of a run. Raises `UserError` if it is damaged and `OSError` if it is missing."""
        file = inside(folder, LEDGER_FILE)
        fields = parsed(read_bounded(file, MAX_BYTES))
        if not fits(fields, LEDGER):
            raise UserError(f"{file}: is damaged; delete it to send the run as a new one")
        return cls(file, {"run_id": None, **fields})

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def update(self, **fields: Any) -> None:
        with self._lock:
            self._fields |= fields
            write_whole(self._file, json.dumps(self._fields, indent=1).encode())

    def add_artifact(self, name: str) -> None:
        """Record that a file, named by its path within the run's folder, is to be sent."""
        with self._lock:
            waiting = self["artifacts"]
            self.update(artifacts=waiting | {name: max(waiting.values(), default=0) + 1})

    def remove_artifact(self, name: str, turn: int) -> None:
        """Record that a file was sent, unless a newer version was added since."""
        with self._lock:
            self.update(artifacts={n: t for n, t in self["artifacts"].items() if (n, t) != (name, turn)})

    def add_sent(self, spool: str, end: int) -> None:
        """Record that MLflow has a spool up to byte `end`."""
        self.update(sent=self["sent"] | {spool: end})

    def begin_anew(self, run_id: str) -> None:
        """Switch to another MLflow run, to which nothing has been sent yet."""
        self.update(run_id=run_id, told="", sent=dict.fromkeys(SPOOLS, 0))


def _short(value: str) -> str:
    return value if len(value) <= PARAM_LENGTH else value[: PARAM_LENGTH - 1] + "…"
