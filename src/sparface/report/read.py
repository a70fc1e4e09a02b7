"""Read run folders for the report: text files and pictures only. Any of them may be missing or incomplete."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparface import config_file
from sparface.errors import UserError
from sparface.files import inside
from sparface.forms import COUNT, NUMBER, fits, parsed, read_json
from sparface.runs import captions
from sparface.runs.captions import Captions
from sparface.runs.record import EVENTS_FILE, read_lines, read_metrics

Series = tuple[list[int], list[float]]
"""Images seen and values."""
MAX_EVALUATION = 1 << 26
EVALUATION_OF = {"recognizer": "verification", "classifier": "classification"}
"""What measures the accuracy of a role."""
MOST_CLASSES = 30
"""Maximum number of classes in a picture of a confusion matrix."""
EVALUATION = {
    "name": str,
    "figures": dict.fromkeys(("accuracy", "standard_error", "auc", "eer", "tar_at_far_0.001"), NUMBER),
    "pairs": {"same": int, "different": int},
    "provenance": {
        **dict.fromkeys(("images_seen", "faces", "centred"), int),
        **dict.fromkeys(("checkpoint", "checkpoint_digest", "pairs", "template"), str),
        "averaged": bool,
        "parameters": int | None,
    },
}
MEASURED = {
    "kind": str,
    "name": str,
    "figures": {str: NUMBER},
    "intervals": {str: [(NUMBER, None)]},
    "provenance": {"images_seen": int},
}
EVENT = {"kind": str, "images": int | None, "message": str | None, "policy": str | None}
"""Structure that the report requires of the files in a run folder."""


@dataclass(frozen=True)
class Run:
    """A run's data, as far as it could be read."""

    name: str
    folder: Path
    config: dict[str, Any]
    """Dotted key → value."""
    metrics: dict[str, Series]
    events: list[dict[str, Any]]
    captions: Captions
    previews: dict[str, Path]
    """Newest picture by name."""
    evaluations: dict[str, dict[str, Any]]
    """Newest result of verification by name."""
    measured: dict[str, dict[str, Any]]
    """Newest result of any other kind by name."""
    unreadable: list[str]
    """Files and lines that could not be read."""

    @property
    def images_seen(self) -> int:
        return max((images[-1] for images, _ in self.metrics.values()), default=0)

    @property
    def mixed(self) -> float:
        """Share of the training faces that come from the sets of data.mix."""
        mixed = [v for k, v in self.config.items() if k.startswith("data.mix.")]
        groups = self.config.get("data.identities_per_batch")
        return sum(mixed) / groups if fits([*mixed, groups], [int]) and groups else 0.0

    @property
    def evaluation(self) -> str | None:
        """The verb that measures the run's accuracy; None if the run recognizes nothing."""
        return next((verb for role, verb in EVALUATION_OF.items() if role in self.captions.roles), None)

    def last(self, metric: str) -> float | None:
        """Return the last value of a metric, or None if it was not logged."""
        return self.metrics[metric][1][-1] if metric in self.metrics else None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders. Raises `UserError` if one has no readable config.yaml or a damaged metrics.jsonl."""
    names = _names(folders)
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names, with as many parent folders as needed to make them unique."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        repeated = next(folder for i, folder in enumerate(folders) if parts[i] in parts[:i])
        raise UserError(f"{repeated}: given twice; name each run once")
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _read(folder: Path, name: str) -> Run:
    unreadable: list[str] = []
    config = _config(folder)
    metrics = _metrics(read_metrics(folder))
    events = list(_events(folder, unreadable))
    evaluations, measured = _evaluations(folder, unreadable)
    found, previews = captions.read(folder), _previews(folder)
    return Run(name, folder, config, metrics, events, found, previews, evaluations, measured, unreadable)


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: not a run (no config.yaml); give the --out folder of `sparface train`")
    return dict(_flat(config_file.read(inside(folder, "config.yaml"))))


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _events(folder: Path, unreadable: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of a run. A killed run may leave an incomplete last line."""
    for number, line in enumerate(read_lines(folder, EVENTS_FILE), 1):
        event = parsed(line)
        if fits(event, EVENT):
            yield event
        elif line.strip():
            unreadable.append(f"{EVENTS_FILE}:{number}")


def _metrics(records: Sequence[dict[str, Any]]) -> dict[str, Series]:
    """Return metric → series, ascending in images seen."""
    table: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if _is_metric(name, value):
                table.setdefault(name, {})[record["images"]] = float("nan") if value is None else float(value)
    return {name: _series(points) for name, points in table.items()}


def _is_metric(name: str, value: Any) -> bool:
    number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    # system metrics are shown by MLflow; evaluations are read from their own files
    return number and name not in ("images", "time") and not name.startswith(("system/", "evaluation/"))


def _series(points: dict[int, float]) -> Series:
    images = sorted(points)
    return images, [points[seen] for seen in images]


def _previews(folder: Path) -> dict[str, Path]:
    found = sorted((folder / "previews").glob("*.png"))
    matches = [(re.fullmatch(r"([0-9]+)-(.+)", path.stem), path) for path in found]
    ordered = sorted((int(match[1]), match[2], path) for match, path in matches if match)
    return {name: path for _, name, path in ordered}


Documents = dict[str, dict[str, Any]]


def _evaluations(folder: Path, unreadable: list[str]) -> tuple[Documents, Documents]:
    """The newest results of verification, and of other evaluations, by name."""
    verifications: Documents = {}
    others: Documents = {}
    for path in sorted((folder / "evaluations").glob("*.json")):
        if (document := _evaluation(folder, path)) is None:
            unreadable.append(path.name)
            continue
        found = others if _is_other(document) else verifications
        name, images = document["name"], document["provenance"]["images_seen"]
        if name not in found or found[name]["provenance"]["images_seen"] <= images:
            found[name] = document
    return verifications, others


def _is_other(document: Any) -> bool:
    """Whether a result is of another kind than verification, whose older results do not name their kind."""
    return isinstance(document, dict) and document.get("kind", "verification") != "verification"


def _evaluation(folder: Path, path: Path) -> dict[str, Any] | None:
    """Read a file written by `sparface evaluate`; returns None if it is damaged or something else."""
    document = read_json(folder, str(path.relative_to(folder)), MAX_EVALUATION)
    if _is_other(document):
        return dict(document) if _is_measured(document) else None
    if not fits(document, EVALUATION) or not math.isfinite(document["figures"]["accuracy"]):
        return None
    if not _is_curve(document.get("roc")):
        return None
    return dict(document)


def _is_measured(document: Any) -> bool:
    """Whether figures and intervals can be shown."""
    if not fits(document, MEASURED) or document["figures"].keys() != document["intervals"].keys():
        return False
    return all(math.isfinite(value) for value in document["figures"].values()) and all(
        len(interval) == 2 for interval in document["intervals"].values()
    )


def can_draw_confusion(document: Any) -> bool:
    """Whether a result has a confusion matrix of a size that can be drawn."""
    if not fits(document, {"classes": [str], "confusion": [[COUNT]]}):
        return False
    classes, rows = len(document["classes"]), document["confusion"]
    return 0 < classes <= MOST_CLASSES and {len(rows), *map(len, rows)} == {classes}


def _is_curve(roc: Any) -> bool:
    """Whether this can be drawn as a ROC, which must include a FAR of 0. An evaluation may have no ROC."""
    if roc is None:
        return True
    if not fits(roc, {"far": [NUMBER], "tar": [NUMBER]}):
        return False
    return len(roc["far"]) == len(roc["tar"]) and 0 in roc["far"]
