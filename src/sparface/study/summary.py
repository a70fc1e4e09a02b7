"""What a study has found, in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparface.study.claims import verdict
from sparface.study.results import Results
from sparface.study.tables import headline_metric, label, shown
from sparface.text import printable


def summary(every: Sequence[Results]) -> str:
    """The compared figure of every arm with its interval, and the verdict on every claim."""
    return "\n".join(line for results in every for line in _of(results))


def _of(results: Results) -> Iterator[str]:
    metric = headline_metric(results)
    if not metric:
        return
    yield f"\n{printable(results.experiment.title)}\n{metric}: mean ± spread between seeds [95 % interval]"
    found = results.figures[metric]
    rows = [(*label(results, setting), shown(metric, results.mean(metric, setting))) for setting in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(map(str.ljust, row, widths)).rstrip()
    verdicts = [verdict(claim, results) for claim in results.experiment.claims]
    for one in verdicts:
        yield f"{one.outcome}: {printable(one.claim.says)}\n  {printable(one.because)}"
    if any(one.outcome == "undecided" for one in verdicts):
        yield "Undecided: chance can explain the difference, so this study cannot tell."
