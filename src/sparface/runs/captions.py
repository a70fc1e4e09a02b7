"""What a report says about a run: its recipe's roles, and the captions of its metrics and pictures.

They are stored in the run's folder, so a report does not need the recipe's code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sparface.files import write_whole
from sparface.forms import fits, read_json
from sparface.recipes import Recipe

FILE = "captions.json"
MAX_BYTES = 1 << 20
_FORM = {"roles": [str], "metrics": {str: {str: str}}, "pictures": {str: str}}


@dataclass(frozen=True)
class Captions:
    """`roles`: what the run trains; `metrics`: group of charts → metric → caption; `pictures`: name →
    caption, both in order."""

    roles: tuple[str, ...] = ("recognizer",)
    metrics: dict[str, dict[str, str]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)


def save(recipe: type[Recipe], roles: Iterable[str], run_folder: Path) -> None:
    """Write the roles of a run and the captions of its recipe into a run's folder."""
    metrics = {group: dict(captions) for group, captions in recipe.captions.items()}
    tree = {"roles": list(roles), "metrics": metrics, "pictures": dict(recipe.pictures)}
    write_whole(run_folder / FILE, json.dumps(tree, indent=1, ensure_ascii=False).encode())


def read(run_folder: Path) -> Captions:
    """Read the captions of a run; empty if the file is missing or damaged."""
    tree = read_json(run_folder, FILE, MAX_BYTES)
    if not fits(tree, _FORM):
        return Captions()
    return Captions(tuple(tree["roles"]), tree["metrics"], tree["pictures"])
