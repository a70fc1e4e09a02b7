"""The record of an interrupted write: settings, then one line for each finished shard."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparface.errors import USERS_ERRNOS, MachineError, UserError
from sparface.files import open_lock, try_lock
from sparface.shards.format import dump_json

JOURNAL = "unfinished.jsonl"
PARTIAL = ".partial"
"""Ending of a file that is being written; before it come the host and the process that write it."""
_WRITER = re.compile(rf".+\.(?P<host>[^/]+)-(?P<process>[0-9]{{1,10}}){re.escape(PARTIAL)}")
_LEFT_SECONDS = 3600.0


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


def write_atomically(path: Path, data: bytes | memoryview, *, replace: bool = True) -> None:
    """Write a file under a temporary name, sync it and rename it into place.

    The temporary name is this process's own, so two that write one file do not meet. Without
    `replace`, a file that is there already stays as it is.
    """
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            partial.replace(path)
        else:
            _link(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _link(partial: Path, path: Path) -> None:
    """Give a file its name unless another has it: of two processes, the first wins."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            partial.replace(path)
    partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, alone: bool = False) -> None:
    """Delete the temporary files of killed processes: of this machine's dead ones, and all old ones.

    `alone` says that nobody else can be writing there, so that all of them are left over.
    """
    for partial in folder.glob(f"*{PARTIAL}"):
        if made := _WRITER.fullmatch(partial.name):
            with contextlib.suppress(OSError):
                if alone or _is_of_a_dead_process(made["host"], int(made["process"])) or _is_old(partial):
                    partial.unlink()


def _is_old(partial: Path) -> bool:
    """Whether nobody can be writing a file any more, by the clock of the file system that it is on."""
    with tempfile.NamedTemporaryFile(dir=partial.parent, prefix=".clock-") as now:
        return os.fstat(now.fileno()).st_mtime - partial.stat().st_mtime > _LEFT_SECONDS


def _is_of_a_dead_process(host: str, process: int) -> bool:
    return host == socket.gethostname() and not _is_alive(process)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def explain_disk(folder: Path, kept: str) -> Iterator[None]:
    """Turn an error of the disk into a `UserError` of one line; `kept` says what stands."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(
                f"{folder}: the disk is full; make room and run the same command again ({kept})"
            ) from None
        kind = UserError if error.errno in USERS_ERRNOS else MachineError
        raise kind(f"{folder}: cannot be written ({error.strerror}); check the folder") from None


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
