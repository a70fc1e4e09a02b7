"""ROC of membership inference, from the results of `sparface evaluate membership`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparface.forms import NUMBER, fits
from sparface.report import charts
from sparface.report.charts import Line
from sparface.report.read import Run


def curves(runs: Sequence[Run]) -> Iterator[tuple[bytes, str]]:
    """Yield one chart for each evaluation, with one curve for each run and attack, and its caption."""
    found: dict[str, list[Line]] = {}
    for index, run in enumerate(runs):
        for name, document in run.measured.items():
            of_attacks = document.get("roc", {}) if document["kind"] == "membership" else {}
            if fits(of_attacks, {str: {"fpr": [NUMBER], "tpr": [NUMBER]}}):
                for attack, roc in sorted(of_attacks.items()):
                    line = Line(f"{run.name}, {attack}", index, roc["fpr"], roc["tpr"])
                    if len(line.x) == len(line.y) and 0 in line.x:
                        found.setdefault(name, []).append(line)
    for name, lines in sorted(found.items()):
        yield (
            charts.roc(lines, ("false positive rate", "true positive rate")),
            f"Guessing who was in the training set ({name}). Dotted: chance.",
        )
