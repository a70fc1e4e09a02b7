"""Captions of a run's metrics and pictures, from its recipe. They are stored in the run's folder, so a report
does not need the recipe's code."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.files import inside, read_bounded, write_whole
from sparface.recipes import Recipe

FILE = "captions.json"
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Captions:
    """`metrics`: group of charts → metric → caption; `pictures`: name → caption; both in order."""

    metrics: dict[str, dict[str, str]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)


def save(recipe: type[Recipe], run_folder: Path) -> None:
    """Write the captions of a recipe into a run's folder."""
    metrics = {group: dict(captions) for group, captions in recipe.captions.items()}
    tree = {"metrics": metrics, "pictures": dict(recipe.pictures)}
    write_whole(run_folder / FILE, json.dumps(tree, indent=1, ensure_ascii=False).encode())


def read(run_folder: Path) -> Captions:
    """Read the captions of a run; empty if the file is missing or damaged."""
    try:
        tree: Any = json.loads(read_bounded(inside(run_folder, FILE), MAX_BYTES))
        metrics, pictures = tree["metrics"], tree["pictures"]
        sound = _are_texts(pictures) and all(map(_are_texts, metrics.values()))
    except (OSError, UserError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        sound = False
    return Captions(metrics, pictures) if sound else Captions()


def _are_texts(tree: Any) -> bool:
    return isinstance(tree, dict) and all(isinstance(value, str) for value in tree.values())
