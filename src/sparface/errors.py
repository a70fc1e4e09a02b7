"""Errors that the command line reports on one line, and its exit codes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

STOPPED_EARLY = 75
"""Exit code of work that was asked to stop before it finished (EX_TEMPFAIL: run it again)."""


class UserError(Exception):
    """A problem the user can fix: a missing folder, a bad config value, a broken shard.

    The message is one line that names the file, sample or config key and says what to do.
    The command line prints it without a traceback and exits with code 2.
    """

    exit_code = 2


class MachineError(UserError):
    """A failure of the machine rather than the user: a full disk, a lost network.

    The same command may succeed later, so the command line exits with code 1 and a job is restarted.
    """

    exit_code = 1


USERS_ERRNOS = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY, errno.EXDEV, errno.EILSEQ, errno.EINVAL),
}
"""Errors caused by the given path rather than by the machine."""


def explain_os_error(error: OSError, named: Iterable[str] = ()) -> UserError:
    """Describe a system error in one line that names the file.

    Returns a plain `UserError` if the path is one of those `named` by the user, or is below, above or
    beside one (temporary files are written beside their target), and a `MachineError` otherwise.
    """
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = f"the disk is full ({what}); make room and run the same command again"
    text = f"{where}: {what}" if where else what
    is_named = any(_belongs_to(where, name) for name in named if name)
    return (UserError if is_named and error.errno in USERS_ERRNOS else MachineError)(text)


def _belongs_to(path: str, name: str) -> bool:
    path, name = os.path.abspath(path), os.path.abspath(name)
    is_around = path.startswith(f"{name}/") or name.startswith(f"{path}/")
    return path == name or is_around or os.path.dirname(path) == os.path.dirname(name)
