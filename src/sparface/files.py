"""Safe access to files and folders that other processes or people may write: paths, locks, bounded reads,
atomic writes."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

from sparface.errors import USERS_ERRNOS, MachineError, UserError

PARTIAL = ".partial"
"""Suffix of a file that is being written; the writer's host name and process ID precede it."""
_WRITER = re.compile(rf".+\.(?P<host>[^/]+)-(?P<process>[0-9]{{1,10}}){re.escape(PARTIAL)}")
_LEFT_SECONDS = 3600.0
_TAKEN = (errno.EAGAIN, errno.EACCES)
"""Error codes for a lock that is already held (POSIX allows both)."""


def inside(folder: Path, name: str | os.PathLike[str]) -> Path:
    """Resolve `name` relative to `folder`, following links, and require that it is inside `folder`.

    Use this for every path read from a file that others may have written. Raises `UserError` for an
    absolute path, a path that leaves the folder (`..`, a symbolic link) and an invalid path.
    """
    try:
        path = (folder / name).resolve()
        is_inside = path.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a NUL byte, a name that is too long, a loop of links
        raise UserError(f"{folder}: names {os.fspath(name)!r}, which is not a valid path") from None
    if Path(name).is_absolute() or not is_inside:
        raise UserError(f"{folder}: names {os.fspath(name)!r}, which is outside the folder")
    return path


def require_writable(file: Path) -> None:
    """Check that `file` can be written, before starting long work that ends in writing it.

    Raises `UserError` if it is a folder, or the `OSError` that writing it would raise.
    """
    if file.is_dir():
        raise UserError(f"{file}: is a folder; name a file")
    folder = next(folder for folder in file.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None


def open_lock(path: Path) -> IO[bytes]:
    """Open a lock file, creating it if missing. Raises `UserError` for a symbolic link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    # `open` rather than `os.fdopen`, which would not set the file's name
    return open(path, "r+b", buffering=0, opener=lambda *_: _open_unlinked(path, flags))


def try_lock(file: IO[Any], lock: Callable[[IO[Any], int], None] = fcntl.lockf) -> bool:
    """Lock an open, writable file until it is closed. Returns False if it is already locked.

    `fcntl.lockf` locks per process: a child process that briefly outlives this one does not keep the lock.
    `fcntl.flock` locks per open file: it also excludes a second writer in the same process.
    Raises `UserError` if the file system does not support locks, which would allow two writers.
    """
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise _unlockable(file, error) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Context manager that holds the lock file `path`, after waiting for its turn. Raises like `try_lock`."""
    with open_lock(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise _unlockable(file, error) from None
        yield


def _unlockable(file: IO[Any], error: OSError) -> UserError:
    return UserError(
        f"{file.name}: cannot be locked ({error.strerror}); use a file system that supports locks"
    )


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for unbuffered reading.

    Raises `UserError` for anything else (opening a FIFO would hang; reading a device might never end) and
    `OSError` if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is not a regular file; replace it with one")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises `UserError` if it is larger or not a regular file, and `OSError` if it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size) if size <= limit else b""
    if size > limit:
        raise UserError(f"{path}: has more than {limit:,} bytes, which is too large for this kind of file")
    return data


def read_table(table: Path, columns: Collection[str], limit: int = 1 << 30) -> list[dict[str, str | None]]:
    """Read a UTF-8 CSV of at most `limit` bytes whose first line names its columns.

    Raises `UserError` if it cannot be read, is not a CSV or lacks one of `columns`.
    """
    try:
        text = read_bounded(table, limit).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = set(columns) - set(reader.fieldnames or ())
        if missing:
            raise UserError(f"{table}: no column {' and '.join(sorted(missing))}; add it to the first line")
        return list(reader)
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); check the path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: is not a valid CSV ({error}); give a UTF-8 CSV") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in parts. Raises `OSError` if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_whole(path: Path, data: bytes | memoryview, *, replace: bool = True) -> None:
    """Write a file atomically: after a failure such as a full disk, it is as it was before.

    Options and errors are those of `writing_aside`.
    """
    with writing_aside(path, replace=replace) as file:
        file.write(data)


@contextlib.contextmanager
def writing_aside(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """Write to a temporary file that is synced and renamed to `path` when the with-block succeeds.

    The temporary file is beside `path`, with a name unique to this process, so concurrent writers of one
    file do not collide; an exception deletes it. Missing folders are created. With `replace=False`, an
    existing file is left unchanged. Raises `OSError` naming `path`.
    """
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            partial.replace(path)
        else:
            _link(partial, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _link(partial: Path, path: Path) -> None:
    """Give a file its final name unless it is taken: of two processes, the first wins."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            partial.replace(path)
    partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, alone: bool = False) -> None:
    """Delete temporary files left by killed processes: those of dead processes on this host, and old ones.

    With `alone`, no other process can be writing there, and all temporary files are deleted.
    """
    for partial in folder.glob(f"*{PARTIAL}"):
        if made := _WRITER.fullmatch(partial.name):
            with contextlib.suppress(OSError):
                if alone or _is_of_a_dead_process(made["host"], int(made["process"])) or _is_old(partial):
                    partial.unlink()


def _is_old(partial: Path) -> bool:
    """Whether a file is too old to still be in use, by the clock of its own file system."""
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
    """Turn a disk error into a one-line `UserError`; `kept` tells the user what has been preserved."""
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


def append_line(path: Path, line: str) -> None:
    """Append a line in a single write, so lines from several processes do not interleave.

    If a crash truncated the last line, it is terminated first so the new line stays intact. Errors are those
    of `open_appending`.
    """
    with open_appending(path) as file:
        size = os.fstat(file.fileno()).st_size
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write((("\n" if torn else "") + line + "\n").encode())


def open_appending(path: Path) -> IO[bytes]:
    """Open a file for unbuffered appending; it is created if missing.

    Raises `UserError` if `path` is a symbolic link or not a regular file, and `OSError` if it cannot be
    written.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = _open_unlinked(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is not a regular file; remove it")
    return os.fdopen(descriptor, "ab", buffering=0)


def _open_unlinked(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: is a symbolic link; replace it with a file") from None
        raise
