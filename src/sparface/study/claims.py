"""Verdicts: whether a claim holds, as far as the intervals of a study can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparface.study.file import Claim
from sparface.study.intervals import Estimate
from sparface.study.results import Results, lower_is_better

RATES = (
    *("accuracy", "rank_", "tar_at", "tpir_at", "eer", "identity_kept", "standard_error"),
    *("precision", "recall", "f1", "calibration_error", "dodging", "impersonation", "success"),
)
"""Beginnings of the names of metrics that are shares."""
Outcome = Literal["reproduced", "not reproduced", "undecided", "not testable here", "not measured yet"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim, and why."""

    claim: Claim
    outcome: Outcome
    because: str
    found: Estimate | None = None


def verdict(claim: Claim, results: Results) -> Verdict:
    """Judge a claim by the 95 % interval of what was measured.

    Reproduced: the whole interval is at or beyond what is claimed. Not reproduced: the whole interval is
    short of it. Undecided: the interval contains it, or the arm was trained with one seed only. Not measured
    yet: a part that it needs is missing, since the other seeds or budgets alone could say something else.
    """
    if claim.why_not:
        return Verdict(claim, "not testable here", claim.why_not)
    found = measured(claim, results)
    needed = [(claim.metric, claim.arm), *([(claim.than_metric, claim.than)] if claim.than else [])]
    parts = {
        part for metric, arm in needed for part in results.missing(metric, [arm], claim.on, claim.images)
    }
    missing = lacking(len(parts))
    if found is None:
        why = missing or f"nothing that was run gives {claim.metric}"
        return Verdict(claim, "not measured yet", why)
    number = points if claim.than and is_rate(claim.metric) else percent if is_rate(claim.metric) else plain
    text = f"{'gain' if claim.than else 'value'} {number(found.mean)}"
    if missing:
        why = f"so far {text} with {seeds(found.seeds)}; {missing}"
        return Verdict(claim, "not measured yet", why, found)
    if found.seeds == 1:
        return Verdict(claim, "undecided", f"{text} with one seed only", found)
    text += f", 95 % interval {number(found.low)} to {number(found.high)}, {found.seeds} seeds"
    lower = not claim.than and lower_is_better(claim.metric)
    if found.high <= claim.by if lower else found.low >= claim.by:
        return Verdict(claim, "reproduced", text, found)
    if found.low > claim.by if lower else found.high < claim.by:
        return Verdict(claim, "not reproduced", text, found)
    return Verdict(claim, "undecided", f"{text}, which contains {number(claim.by)}", found)


def measured(claim: Claim, results: Results) -> Estimate | None:
    """Return the gain or the value that a claim is about; None if it has not been measured."""
    if claim.than:
        return results.gain(
            claim.metric, claim.arm, claim.than, claim.on, claim.images, than_metric=claim.than_metric
        )
    setting = results.at(claim.metric, claim.arm, claim.on or results.main_set, claim.images)
    return results.mean(claim.metric, setting) if setting else None


def lacking(count: int) -> str:
    return f"{count} parts are missing" if count > 1 else "1 part is missing" if count else ""


def seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def is_rate(metric: str) -> bool:
    """Whether a metric is a share, which is shown in percent."""
    return metric.partition(".")[2].rpartition("/")[2].startswith(RATES)


def points(value: float) -> str:
    return f"{100 * value:+.1f} points".replace("-", "−")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %".replace("-", "−")


def plain(value: float) -> str:
    return f"{value:.4f}".replace("-", "−")
