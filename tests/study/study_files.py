"""A study that is small enough for tests, and its folder with parts that were run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sparface.study.folder import StudyFolder
from tiny_config import TINY

DATA = {"faces": "drawn faces", "others": "other drawn faces"}


def small_study(**more: Any) -> dict[str, Any]:
    """Two arms × two seeds of the smallest training, one evaluation, one claim."""
    train = {**TINY, "schedule.images": 16, "training.checkpoint_every": 8, "training.preview_every": 16}
    train |= {"data.shards": "{faces}", "data.workers": 0, "tracking.enabled": False}
    train.pop("schedule.images")
    experiment = {
        "config": "smoke",
        "train": train,
        "seeds": 2,
        "images": 16,
        "arms": {"plain": {"data.variation": "none"}, "varied": {"data.variation": "classic"}},
        "evaluate": {"others": "verification --shards {others}"},
        "claims": [
            {"says": "it helps", "arm": "varied", "beats": "plain", "by": 0.9, "in": "others.accuracy"}
        ],
        "gains": {"arm": "varied", "in": "others.accuracy", "over": {"recognizer": "plain"}},
    }
    return {"title": "Small", "data": dict(DATA), "experiments": {"S": experiment | more}}


def started(file: Path, out: Path, *data: str) -> StudyFolder:
    """A study that was started in a folder, and of which nothing has run."""
    study = StudyFolder.start(file, out, data)
    with study.held(file):
        return study


def write_study(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path
