"""The journal of an unfinished write: the settings, then one line per finished shard."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.files import open_lock, try_lock
from sparface.shards.format import dump_json, is_shard_file, shard_file
from sparface.shards.manifest import MANIFEST, Manifest

JOURNAL = "unfinished.jsonl"
ERASE = "erase"
"""Field of the journal's first line while the shards of the previous set are being deleted."""


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


def listed_shards(folder: Path, records: list[dict[str, Any]]) -> set[str]:
    """The file names of the shards that are listed in a folder's manifest or journal."""
    named: list[Any] = []
    with contextlib.suppress(UserError):
        named += [shard.file for shard in Manifest.load(folder / MANIFEST).shards]
    if records and isinstance(settings := records[0].get("settings"), dict):
        # one more than recorded: a crash may have come between a shard and its line
        named += [shard_file(str(settings.get("name")), number) for number in range(len(records))]
    elif records and isinstance(records[0].get(ERASE), list):
        named += records[0][ERASE]
    return {name for name in named if isinstance(name, str) and is_shard_file(name)}
