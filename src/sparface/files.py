"""Files and folders that others may read, write or have written.

Is a path inside a folder, what does a file hold, is a lock free; and writing a file whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from sparface.errors import USERS_ERRNOS, MachineError, UserError

PARTIAL = ".partial"
"""Ending of a file that is being written; before it come the host and the process that write it."""
_WRITER = re.compile(rf".+\.(?P<host>[^/]+)-(?P<process>[0-9]{{1,10}}){re.escape(PARTIAL)}")
_LEFT_SECONDS = 3600.0
_TAKEN = (errno.EAGAIN, errno.EACCES)
"""What a lock that somebody else holds answers (POSIX allows both)."""


def inside(folder: Path, name: str | os.PathLike[str]) -> Path:
    """The path that a file in `folder` names, which must lie inside `folder`, links followed.

    Use it for every path that comes out of a file that others may have written. Raises `UserError`
    for an absolute path, one that leaves the folder (`..`, a symbolic link) and one that cannot be
    a path.
    """
    try:
        path = (folder / name).resolve()
        is_inside = path.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a NUL, a name that is too long, a loop of links
        raise UserError(f"{folder}: names {os.fspath(name)!r}, which cannot be a path") from None
    if Path(name).is_absolute() or not is_inside:
        raise UserError(f"{folder}: names {os.fspath(name)!r}, which is outside of the folder")
    return path


def require_writable(file: Path) -> None:
    """Fail now where `file` could not be written, before long work is done for it.

    Raises `UserError` when it is a folder, else the `OSError` that writing would.
    """
    if file.is_dir():
        raise UserError(f"{file}: is a folder; name a file")
    folder = next(folder for folder in file.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None


def open_lock(path: Path) -> IO[bytes]:
    """A file to lock, made if it is missing and never changed. Raises `UserError` for a symbolic link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    # by `open`, so that the file knows its name
    return open(path, "r+b", buffering=0, opener=lambda *_: _open_unlinked(path, flags))


def try_lock(file: IO[Any], lock: Callable[[IO[Any], int], None] = fcntl.lockf) -> bool:
    """Lock an open, writable file until it is closed; False when somebody else has it.

    `fcntl.lockf` locks for this process alone: a child that outlives it for a moment does not hold the
    lock. `fcntl.flock` locks for this opening of the file: two writers in one process see each other.
    Raises `UserError` when the file system cannot lock, since two writers would then not see each other.
    """
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise _unlockable(file, error) from None


def wait_for_lock(file: IO[Any]) -> None:
    """Lock this opening of a file until it is closed, once nobody else has it. Raises as `try_lock`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise _unlockable(file, error) from None


def _unlockable(file: IO[Any], error: OSError) -> UserError:
    return UserError(f"{file.name}: cannot be locked ({error.strerror}); use a file system with locks")


def open_regular(path: Path) -> IO[bytes]:
    """A regular file, open for unbuffered reading.

    Raises `UserError` for anything else (opening a FIFO would hang, reading a device would not end),
    `OSError` when it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is not a regular file; replace it by one")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises `UserError` for a larger file and for what is no regular file, `OSError` when it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size) if size <= limit else b""
    if size > limit:
        raise UserError(f"{path}: has more than {limit:,} bytes, which is too large for such a file")
    return data


def write_whole(path: Path, data: bytes | memoryview, *, replace: bool = True) -> None:
    """Write a file so that it is there whole or, after a failure such as a full disk, as it was before.

    Options and errors as for `writing_aside`.
    """
    with writing_aside(path, replace=replace) as file:
        file.write(data)


@contextlib.contextmanager
def writing_aside(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """A new file that takes the name `path` once the with-block has ended well, synced to the disk.

    Until then it lies beside `path` under a name of this process's own, so that two that write one file do
    not meet; an exception deletes it. The folder is made if it is missing. Without `replace`, a file that
    is there already stays as it is. Raises the `OSError` naming `path`.
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


def append_line(path: Path, line: str) -> None:
    """Append a line in one write, so that the lines of several processes stay whole.

    A last line that a crash cut short is ended first: it damages itself only. Raises `UserError` when
    `path` is a symbolic link or no regular file, `OSError` when it cannot be written.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = _open_unlinked(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is not a regular file; remove it")
        torn = status.st_size > 0 and os.pread(descriptor, 1, status.st_size - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + line + "\n").encode())
    finally:
        os.close(descriptor)


def _open_unlinked(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: is a symbolic link; replace it by a file") from None
        raise
