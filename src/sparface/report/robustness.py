"""Curves of accuracy under attack, from the results of `sparface evaluate robustness`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from sparface.report import charts
from sparface.report.charts import Line
from sparface.report.read import Run

_FIGURE = re.compile(r"([a-z]{1,20})/([0-9]{1,9}(?:\.[0-9]{1,9})?(?:e-[0-9]{1,2})?)/accuracy")
Points = list[tuple[float, float, float, float]]
"""Strength, accuracy, and the ends of its interval."""


def curves(runs: Sequence[Run]) -> Iterator[tuple[bytes, str]]:
    """Yield one chart for each evaluation and attack, with one curve for each run, and its caption."""
    found: dict[tuple[str, str], dict[int, Points]] = {}
    for index, run in enumerate(runs):
        for name, document in run.measured.items():
            if document["kind"] == "robustness":
                for attack, points in _points(document).items():
                    found.setdefault((name, attack), {})[index] = points
    for (name, attack), of_runs in sorted(found.items()):
        bands = []
        for index, points in of_runs.items():
            x, y, low, high = map(list, zip(*points, strict=True))
            bands.append((Line(runs[index].name, index, x, y), low, high))
        label = "pixels changed" if attack == "pixel" else "bound ε on the change, for faces in [0, 1]"
        yield (
            charts.over_strength(bands, label),
            f"Accuracy under the attack {attack} ({name}), with 95 % intervals.",
        )


def _points(document: dict[str, Any]) -> dict[str, Points]:
    """Attack → points of its curve, which starts without attack. Figures without interval are left out."""
    found: dict[str, Points] = {}
    start: Points = []
    for figure, value in document["figures"].items():
        low, high = document["intervals"][figure]
        match = _FIGURE.fullmatch(figure)
        if low is None or high is None:
            continue
        if figure == "accuracy":
            start = [(0.0, value, low, high)]
        elif match:
            found.setdefault(match[1], []).append((float(match[2]), value, low, high))
    return {attack: sorted(start + points) for attack, points in found.items()}
