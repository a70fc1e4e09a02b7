"""Errors in writing and reading checkpoints, explained to the user."""

from __future__ import annotations

import logging
import shutil
import traceback
from pathlib import Path

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from sparface.errors import USERS_ERRNOS, MachineError, UserError

logger = logging.getLogger(__name__)


def kind(error: BaseException) -> type[UserError]:
    """Classify an error: the user must fix something (such as folder permissions), or the machine failed."""
    if isinstance(error, OSError):
        return UserError if error.errno in USERS_ERRNOS else MachineError
    return type(error) if isinstance(error, UserError) else MachineError


def lost_process(error: BaseException) -> bool:
    """Whether torch.distributed reports that another process ended or hangs."""
    errors = [error]
    if isinstance(error, CheckpointException):
        errors = [failure[0] for failure in error.failures.values()]
    return any(isinstance(e, dist.DistError) or "gloo" in str(e) for e in errors)


def reason(error: BaseException, folder: Path) -> str:
    """The cause of a failed save in a few words. Torch wraps "disk full" in its own errors."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UserError):
        return str(error)
    if folder.is_dir() and shutil.disk_usage(folder).free < 1 << 20:
        return "no space left on device"
    logger.error("checkpoint failed:\n%s", "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
