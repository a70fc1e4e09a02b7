"""The folder of a run's checkpoints: their names, which ones stand, which ones go.

A checkpoint is written as `.writing-step-000012800` and renamed when complete, so whatever has the final
name was whole once. One that is replaced waits as `.replaced-…` until its replacement is there, and one
that goes is renamed to `.deleting-…` first.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from sparface.files import sync_folder
from sparface.runs.checkpoint_files import STATE_FILE, checkpoint_problem

WRITING = ".writing-"
REPLACED = ".replaced-"
DELETING = ".deleting-"


def candidates(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first; one that was being replaced comes after its replacement."""
    pattern = re.compile(rf"({re.escape(REPLACED)})?step-(\d+)")
    found = [(match, path) for path in folder.glob("*step-*") if (match := pattern.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0][2]), pair[0][1] is None), reverse=True)
    return [path for _, path in found]


def standing(folder: Path) -> list[Path]:
    """The checkpoints that have their names and a state, newest first."""
    named = [path for path in candidates(folder) if not path.name.startswith(REPLACED)]
    return [path for path in named if (path / STATE_FILE).is_file()]


def writing_path(folder: Path, images_seen: int) -> Path:
    """Where a checkpoint lies until it is complete."""
    return folder / f"{WRITING}step-{images_seen:09d}"


def prepare(writing: Path) -> None:
    """An empty folder to write to."""
    writing.parent.mkdir(parents=True, exist_ok=True)
    tidy(writing.parent)
    writing.mkdir()


def publish(writing: Path) -> None:
    """Give a checkpoint whose files are all there its final name."""
    sync_folder(writing)
    final = writing.with_name(writing.name.removeprefix(WRITING))
    aside = writing.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        final.rename(aside)
    writing.rename(final)
    sync_folder(writing.parent)
    shutil.rmtree(aside, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what interrupted saves left behind; finish an interrupted replacement."""
    for stale in [*folder.glob(f"{WRITING}*"), *folder.glob(f"{DELETING}*")]:
        shutil.rmtree(stale)
    for aside in folder.glob(f"{REPLACED}*"):
        final = folder / aside.name.removeprefix(REPLACED)
        if final.exists() and checkpoint_problem(final) is None:
            shutil.rmtree(aside)
        else:  # what was put aside may be all that is left
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)


def retain(folder: Path, keep: int, images_seen: int) -> None:
    """Delete all but the `keep` newest up to `images_seen`. What lies beyond was skipped as damaged:
    it must not count as kept, and it is the user's to look at."""
    standing = [path for path in candidates(folder) if int(path.name.rpartition("-")[2]) <= images_seen]
    for old in standing[keep:]:
        with suppress(OSError):
            delete(old)


def delete(path: Path) -> None:
    """A kill on the way must not leave half a checkpoint under its name."""
    doomed = path.with_name(f"{DELETING}{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)
