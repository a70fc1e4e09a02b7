"""Files and folders that somebody else may have written: is a path inside, is a lock free."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO, Any

from sparface.errors import UserError

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


def try_lock(file: IO[Any]) -> bool:
    """Lock an open, writable file for this process until it is closed; False when another process has it.

    Raises `UserError` when the file system cannot lock, since two writers would then not see each other.
    """
    try:
        # of this process alone: a child that outlives it for a moment must not hold the lock
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise UserError(
            f"{file.name}: cannot be locked ({error.strerror}); use a file system with locks"
        ) from None
