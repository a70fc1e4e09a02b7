"""A run folder as the report reads it: text files and pictures only, nothing of it has to be complete."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparface import config_file
from sparface.errors import UserError
from sparface.files import inside, read_bounded
from sparface.training.record import read_lines, read_metrics

MAX_BYTES = 1 << 26
"""Largest file of an evaluation that is read."""
Series = tuple[list[int], list[float]]
"""Images seen and values."""


@dataclass(frozen=True)
class Run:
    """What is known of a run."""

    name: str
    folder: Path
    config: dict[str, Any]
    """Dotted key → value."""
    metrics: dict[str, Series]
    events: list[dict[str, Any]]
    previews: dict[str, Path]
    """The newest picture of each name."""
    evaluations: dict[str, dict[str, Any]]
    """The newest result of each name."""
    unreadable: list[str]
    """Files and lines that could not be read."""

    @property
    def images_seen(self) -> int:
        return max((images[-1] for images, _ in self.metrics.values()), default=0)

    @property
    def mixed(self) -> float:
        """Share of the training faces that came from the sets of data.mix."""
        groups = sum(int(v) for k, v in self.config.items() if k.startswith("data.mix.") and v)
        return groups / int(self.config.get("data.identities_per_batch") or 1)

    def last(self, metric: str) -> float | None:
        """The last value of a metric, None if there is none."""
        return self.metrics[metric][1][-1] if metric in self.metrics else None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders. Raises UserError: no run (no readable config.yaml), a damaged metrics.jsonl."""
    names = _names(folders)
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; with as many parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        double = next(folder for i, folder in enumerate(folders) if parts[i] in parts[:i])
        raise UserError(f"{double}: given twice; name each run once")
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _read(folder: Path, name: str) -> Run:
    unreadable: list[str] = []
    config = _config(folder)
    metrics = _metrics(read_metrics(folder))
    events = list(_lines(folder / "events.jsonl", unreadable))
    evaluations = _evaluations(folder / "evaluations", unreadable)
    return Run(name, folder, config, metrics, events, _previews(folder / "previews"), evaluations, unreadable)


def _config(folder: Path) -> dict[str, Any]:
    path = inside(folder, "config.yaml")
    if not path.exists():
        raise UserError(f"{folder}: not a run (no config.yaml); give the --out folder of a training")
    return dict(_flat(config_file.read(path)))


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _lines(path: Path, unreadable: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line. A killed run may leave a last line that is cut off."""
    for number, line in enumerate(read_lines(path.parent, path.name), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield record
        elif line.strip():
            unreadable.append(f"{path.name}:{number}")


def _metrics(records: Sequence[dict[str, Any]]) -> dict[str, Series]:
    """Metric → series, ascending in images seen."""
    table: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if _is_metric(name, value):
                table.setdefault(name, {})[record["images"]] = float("nan") if value is None else float(value)
    return {name: _series(points) for name, points in table.items()}


def _is_metric(name: str, value: Any) -> bool:
    number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    # measurements of the machine are for MLflow's page; evaluations are read from their own files
    return number and name not in ("images", "time") and not name.startswith(("system/", "evaluation/"))


def _series(points: dict[int, float]) -> Series:
    images = sorted(points)
    return images, [points[seen] for seen in images]


def _previews(folder: Path) -> dict[str, Path]:
    """The newest picture of each name. A link out of the run would put a picture of yours into the report."""
    found = [inside(folder.parent, path.relative_to(folder.parent)) for path in sorted(folder.glob("*.png"))]
    matches = [(re.fullmatch(r"(\d+)-(.+)", path.stem), path) for path in found]
    ordered = sorted((int(match[1]), match[2], path) for match, path in matches if match)
    return {name: path for _, name, path in ordered}


def _evaluations(folder: Path, unreadable: list[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            document = json.loads(
                read_bounded(inside(folder.parent, f"{folder.name}/{path.name}"), MAX_BYTES)
            )
            name, images = str(document["name"]), int(document["provenance"]["images_seen"])
            if not math.isfinite(document["figures"]["accuracy"]):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
            unreadable.append(path.name)
            continue
        if name not in found or found[name]["provenance"]["images_seen"] <= images:
            found[name] = document
    return found
