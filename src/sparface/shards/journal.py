"""The journal of an unfinished write: the settings, then one line per finished shard."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.files import open_lock, try_lock
from sparface.shards.format import dump_json

JOURNAL = "unfinished.jsonl"


class Journal:
    """The journal of one folder, locked against a second writer while it is open."""

    def __init__(self, folder: Path) -> None:
        """Open or create the journal. Raises `UserError` if another process is writing to the folder."""
        self.path = folder / JOURNAL
        self._file = open_lock(self.path)
        if not (try_lock(self._file, fcntl.flock) and self._is_in_place()):
            self._file.close()
            raise UserError(f"{folder}: another process is writing to this folder; wait for it or stop it")

    def _is_in_place(self) -> bool:
        """Whether the locked file is still the journal; the writer deletes it when it finishes."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.lstat())
        except FileNotFoundError:
            return False

    def read(self) -> list[dict[str, Any]]:
        """Read the complete lines, and truncate a partial last line left by a crash."""
        self._file.seek(0)
        data = self._file.read()
        complete = data[: data.rfind(b"\n") + 1]
        if len(complete) < len(data):
            self._file.truncate(len(complete))
        try:
            return [json.loads(line) for line in complete.splitlines()]
        except ValueError:
            raise UserError(f"{self.path}: is damaged; write the set again with --overwrite") from None

    def append(self, record: dict[str, Any]) -> None:
        """Write a line and sync it to disk."""
        self._file.seek(0, os.SEEK_END)
        line = memoryview(dump_json(record) + b"\n")
        while line:  # unbuffered: on a nearly full disk, a write may be partial before the next one fails
            line = line[self._file.write(line) :]
        os.fsync(self._file.fileno())

    def clear(self) -> None:
        self._file.truncate(0)

    def close(self, *, delete: bool = False) -> None:
        if delete:
            self.path.unlink(missing_ok=True)
        self._file.close()
