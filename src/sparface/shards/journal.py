"""The record of an interrupted write: settings, then one line for each finished shard."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.shards.format import dump_json

JOURNAL = "unfinished.jsonl"


class Journal:
    """The journal of one folder, locked against a second writer for as long as it is open."""

    def __init__(self, folder: Path) -> None:
        """Open or create it. Raises `UserError` when another process is writing there."""
        self.path = folder / JOURNAL
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{folder}: another process is writing there; wait for it or stop it") from None
        except OSError:
            pass  # a file system without locks: one writer at a time is then the user's care

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
        self._file.write(dump_json(record) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def clear(self) -> None:
        self._file.truncate(0)

    def close(self, *, delete: bool = False) -> None:
        if delete:
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a line that met a full disk is still in the buffer
            self._file.close()


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file under a temporary name, sync it and rename it into place."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
