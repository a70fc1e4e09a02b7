"""The folder of a run's checkpoints: naming, listing, publishing and deleting.

A checkpoint is written as `.writing-step-000012800` and renamed when complete, so a folder with a final name
was complete once. A checkpoint being replaced is kept as `.replaced-…` until its replacement is published,
and a checkpoint to be deleted is renamed to `.deleting-…` first.
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
    """List complete checkpoints, newest first; one that was being replaced comes after its replacement."""
    pattern = re.compile(rf"({re.escape(REPLACED)})?step-(\d+)")
    found = [(match, path) for path in folder.glob("*step-*") if (match := pattern.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0][2]), pair[0][1] is None), reverse=True)
    return [path for _, path in found]


def standing(folder: Path) -> list[Path]:
    """List the published checkpoints that have a state file, newest first."""
    named = [path for path in candidates(folder) if not path.name.startswith(REPLACED)]
    return [path for path in named if (path / STATE_FILE).is_file()]


def writing_path(folder: Path, images_seen: int) -> Path:
    """The path of a checkpoint until it is complete."""
    return folder / f"{WRITING}step-{images_seen:09d}"


def prepare(writing: Path) -> None:
    """Create an empty folder to write to."""
    writing.parent.mkdir(parents=True, exist_ok=True)
    tidy(writing.parent)
    writing.mkdir()


def publish(writing: Path) -> None:
    """Rename a checkpoint whose files are all written to its final name."""
    sync_folder(writing)
    final = writing.with_name(writing.name.removeprefix(WRITING))
    aside = writing.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        final.rename(aside)
    writing.rename(final)
    sync_folder(writing.parent)
    shutil.rmtree(aside, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove leftovers of interrupted saves, and finish an interrupted replacement."""
    for stale in [*folder.glob(f"{WRITING}*"), *folder.glob(f"{DELETING}*")]:
        shutil.rmtree(stale)
    for aside in folder.glob(f"{REPLACED}*"):
        final = folder / aside.name.removeprefix(REPLACED)
        if final.exists() and checkpoint_problem(final) is None:
            shutil.rmtree(aside)
        else:  # the replaced checkpoint may be the only one left
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)


def retain(folder: Path, keep: int, images_seen: int) -> None:
    """Delete all but the `keep` newest checkpoints up to `images_seen`. Later ones were skipped as damaged:
    they do not count, and are left for the user to inspect."""
    intact = [path for path in candidates(folder) if int(path.name.rpartition("-")[2]) <= images_seen]
    for old in intact[keep:]:
        with suppress(OSError):
            delete(old)


def delete(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so a kill can't leave half of it under its final name."""
    doomed = path.with_name(f"{DELETING}{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)
