"""What a study has found, in lines for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from sparface.runs.server import SQLITE
from sparface.runs.tracking import tracking_uri
from sparface.study.claims import verdict
from sparface.study.folder import StudyFolder
from sparface.study.results import Results
from sparface.study.tables import headline_metric, label, seeds_of, shown
from sparface.study.tracking import own_run, tracked
from sparface.text import printable, without_login


def summary(folder: StudyFolder, every: Sequence[Results]) -> str:
    """Every arm's figure and the verdict on every claim, with 95 % intervals; then where the rest is."""
    found = [line for results in every for line in _findings(results)]
    return "\n".join([*found, "", *_places(folder, every)])


def _findings(results: Results) -> Iterator[str]:
    metric = headline_metric(results)
    if metric:
        yield f"\n{printable(results.experiment.title)}"
        yield f"{metric}: mean ± standard deviation between seeds [95 % interval of the mean]"
        rows = [
            (*label(results, setting), shown(metric, results.mean(metric, setting)),
             f"seeds: {seeds_of(results, [metric], setting)}")
            for setting in results.figures[metric]
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  " + "  ".join(map(str.ljust, row, widths))
    verdicts = [verdict(claim, results) for claim in results.experiment.claims]
    for one in verdicts:
        yield f"\n{one.outcome}: {printable(one.claim.says)}\n  {printable(one.because)}"
    if any(one.outcome == "undecided" for one in verdicts):
        yield "\nUndecided means that nothing can be told: chance may explain what was measured."


def _places(folder: StudyFolder, every: Sequence[Results]) -> Iterator[str]:
    yield f"report  {folder.resolved / 'report.html'}"
    if any(tracked(folder, every)):
        uri = tracking_uri(own_run(folder))
        local = f"mlflow ui --backend-store-uri {shlex.quote(uri)}, then http://127.0.0.1:5000"
        yield f"MLflow  {local if uri.startswith(SQLITE) else without_login(uri)}"
