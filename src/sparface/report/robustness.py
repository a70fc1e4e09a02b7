"""Curves of accuracy under attack, from the results of `sparface evaluate robustness`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from sparface.attacks.settings import AttackName
from sparface.report import charts
from sparface.report.charts import Line
from sparface.report.read import Run

_ATTACKS = "|".join(get_args(AttackName))  # a file may claim any number of others
_FIGURE = re.compile(rf"({_ATTACKS})/([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?(?:e-[0-9]{{1,2}})?)/accuracy")
Points = list[tuple[float, float, float, float]]
"""Strength, accuracy, and the ends of its interval."""


def strength(figure: str) -> tuple[str, float] | None:
    """Read an accuracy's attack and strength: fgsm/0.01/accuracy → fgsm, 0.01; None for other figures."""
    match = _FIGURE.fullmatch(figure)
    return (match[1], float(match[2])) if match else None


def chart(attack: str, curves: Mapping[tuple[int, str], Points]) -> bytes:
    """Plot accuracy over the strength of an attack: (index of the colour, name) → points of a curve."""
    bands = []
    for (index, name), points in curves.items():
        x, y, low, high = map(list, zip(*sorted(points), strict=True))
        bands.append((Line(name, index, x, y), low, high))
    label = "pixels changed" if attack == "pixel" else "bound ε on the change, for faces in [0, 1]"
    return charts.over_strength(bands, label)


def curves(runs: Sequence[Run]) -> Iterator[tuple[bytes, str]]:
    """Yield one chart for each evaluation and attack, with one curve for each run, and its caption."""
    found: dict[tuple[str, str], dict[tuple[int, str], Points]] = {}
    for index, run in enumerate(runs):
        for name, document in run.measured.items():
            if document["kind"] == "robustness":
                for attack, points in _points(document).items():
                    found.setdefault((name, attack), {})[index, run.name] = points
    for (name, attack), of_runs in sorted(found.items()):
        yield chart(attack, of_runs), f"Accuracy under the attack {attack} ({name}), with 95 % intervals."


def _points(document: dict[str, Any]) -> dict[str, Points]:
    """Attack → points of its curve, which starts without attack. Figures without interval are left out."""
    found: dict[str, Points] = {}
    start: Points = []
    for figure, value in document["figures"].items():
        low, high = document["intervals"][figure]
        named = strength(figure)
        if low is None or high is None:
            continue
        if figure == "accuracy":
            start = [(0.0, value, low, high)]
        elif named:
            attack, size = named
            found.setdefault(attack, []).append((size, value, low, high))
    return {attack: start + points for attack, points in found.items()}
