"""The record of an interrupted write: settings, then one line for each finished shard."""

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
    """The journal of one folder, locked against a second writer for as long as it is open."""

    def __init__(self, folder: Path) -> None:
        """Open or create it. Raises `UserError` when another process is writing there."""
        self.path = folder / JOURNAL
        self._file = open_lock(self.path)
        if not (try_lock(self._file, fcntl.flock) and self._is_in_place()):
            self._file.close()
            raise UserError(f"{folder}: another process is writing there; wait for it or stop it")

    def _is_in_place(self) -> bool:
        """Whether the locked file still is the journal: its writer deletes it at the end."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.lstat())
        except FileNotFoundError:
            return False

    def read(self) -> list[dict[str, Any]]:
        """The complete lines. A torn last line (a crash while writing it) is cut off."""
        self._file.seek(0)
        data = self._file.read()
        complete = data[: data.rfind(b"\n") + 1]
        if len(complete) < len(data):
            self._file.truncate(len(complete))
        try:
            return [json.loads(line) for line in complete.splitlines()]
        except ValueError:
            raise UserError(f"{self.path}: is damaged; write again with overwrite") from None

    def append(self, record: dict[str, Any]) -> None:
        """Write a line and sync it."""
        self._file.seek(0, os.SEEK_END)
        line = memoryview(dump_json(record) + b"\n")
        while line:  # unbuffered: a disk that is almost full takes a part and only then says so
            line = line[self._file.write(line) :]
        os.fsync(self._file.fileno())

    def clear(self) -> None:
        self._file.truncate(0)

    def close(self, *, delete: bool = False) -> None:
        if delete:
            self.path.unlink(missing_ok=True)
        self._file.close()
