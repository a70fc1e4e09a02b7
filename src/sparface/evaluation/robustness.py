"""Evaluate robustness: how many answers of a network are still right if faces are attacked."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparface.attacks.attack import Attack
from sparface.attacks.goal import Goal
from sparface.attacks.settings import AttackConfig
from sparface.evaluation.bootstrap import Statistic
from sparface.evaluation.recognizers import Opened
from sparface.evaluation.results import estimates, figures, percent
from sparface.evaluation.scores import Bools, Ints
from sparface.progress import track
from sparface.shards.set import ShardSet

BATCH = 64
"""Faces attacked at a time."""
KINDS = ("dodging", "impersonation", "success")
"""Shares of answers that were right and no longer are: of pairs of one person, of two, and of classes."""


class Subject(ABC):
    """Faces about which a network gives answers that are right or wrong."""

    opened: Opened
    """The network that gives the answers."""
    shard_set: ShardSet
    people: list[str]
    """The people whom figures are resampled over."""
    owner: Ints
    """[count]: index of the person of each face that is attacked."""
    count: int
    """Number of answers."""

    def batches(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Goal, Goal]]:
        """Yield the positions int64 [b] of some answers and their `batch`, with a progress bar."""
        starts = range(0, self.count, BATCH)
        for start in track(starts, total=len(starts), unit="batches"):
            places = range(start, min(start + BATCH, self.count))
            yield torch.tensor(places, device=device), *self.batch(places, device)

    @abstractmethod
    def batch(self, places: range, device: torch.device) -> tuple[Tensor, Goal, Goal]:
        """The faces [b,3,H,W] behind some answers, the goal that attacks aim at, and the one that decides
        whether an answer is still right. (They differ if the attacker knows another network.)"""

    @abstractmethod
    def statistics(self, right: Bools, before: Bools) -> dict[str, Statistic]:
        """`accuracy`, and shares of `KINDS`, from whether each answer [N] is right and was right before."""


@dataclass(frozen=True)
class Trial:
    """An attack with one budget."""

    attack: Attack
    strength: float
    """ε, or the number of pixels."""

    @property
    def settings(self) -> AttackConfig:
        return self.attack.settings

    @property
    def name(self) -> str:
        return f"{self.settings.attack}/{self.strength:g}"


@dataclass
class Outcome:
    """What a trial did to N answers."""

    right: Bools
    """[N]: whether the answer was right and still is."""
    queries: Ints
    """[N]"""
    seconds: float = 0.0


def measure(trials: Sequence[Trial], subject: Subject, device: torch.device) -> dict[str, Any]:
    """Attack the faces, a batch of them in memory at a time.

    Returns `figures`, `intervals` and `bootstrap` (see `results.figures`; `accuracy` without attack, and
    `ATTACK/STRENGTH/accuracy` and shares of `KINDS`), and `curves`, a row for each trial.
    """
    *outcomes, clean = _outcomes(trials, subject, device)
    found = subject.statistics(clean.right, clean.right)
    statistics = {"accuracy": found["accuracy"]}
    for trial, outcome in zip(trials, outcomes, strict=True):
        shares = subject.statistics(outcome.right, clean.right)
        statistics |= {f"{trial.name}/{kind}": one for kind, one in shares.items()}
    measured = figures(estimates(statistics, len(subject.people)), subject.people)
    rows = [_row(trial, one, clean.right, measured) for trial, one in zip(trials, outcomes, strict=True)]
    return {**measured, "curves": rows}


def _outcomes(trials: Sequence[Trial], subject: Subject, device: torch.device) -> list[Outcome]:
    """The outcome of each trial, and at the end that of no attack. A wrong answer is not attacked and stays
    wrong: an attacker would leave it as it is (Croce & Hein 2020)."""
    count = subject.count
    outcomes = [Outcome(np.zeros(count, bool), np.zeros(count, np.int64)) for _ in range(len(trials) + 1)]
    for positions, x, aim, judge in subject.batches(device):
        rows = (judge.judge(x, torch.arange(len(x), device=device)) >= 0).nonzero()[:, 0]
        at = positions[rows].cpu().numpy()
        outcomes[-1].right[at] = True
        if not len(rows):
            continue
        goal = aim.part(rows)
        for trial, outcome in zip(trials, outcomes[:-1], strict=True):
            begun = time.monotonic()
            found = trial.attack(goal, x[rows], positions[rows])
            outcome.right[at] = (judge.judge(found.faces, rows) >= 0).cpu().numpy()
            outcome.queries[at] = found.queries.cpu().numpy()
            outcome.seconds += time.monotonic() - begun
    return outcomes


def _row(trial: Trial, outcome: Outcome, attacked: Bools, found: Mapping[str, Any]) -> dict[str, Any]:
    """One point of a curve."""
    values = {kind: found["figures"].get(f"{trial.name}/{kind}") for kind in ("accuracy", *KINDS)}
    return {
        "attack": trial.settings.attack,
        "strength": trial.strength,
        "settings": trial.settings.used(),
        **{kind: value for kind, value in values.items() if value is not None},
        "interval": found["intervals"][f"{trial.name}/accuracy"],
        "queries": round(float(outcome.queries.sum()) / max(1, attacked.sum()), 1),
        "seconds": round(outcome.seconds, 1),
    }


def summary(document: Mapping[str, Any]) -> str:
    """Summarise an evaluation in a table, one line per attack and strength."""
    rows = document["curves"]
    shown = [kind for kind in KINDS if any(kind in row for row in rows)]
    lines = [
        f"{document['name']}: accuracy without attack {percent(document, 'accuracy')}",
        f"{'attack':<10}{'ε or pixels':>12}  {'accuracy':<22}"
        + "".join(f"{kind:>15}" for kind in shown)
        + f"{'queries':>10}",
    ]
    for row in rows:
        value = percent(document, f"{row['attack']}/{row['strength']:g}/accuracy")
        shares = "".join(f"{f'{row[kind]:.1%}' if kind in row else '–':>15}" for kind in shown)
        lines.append(f"{row['attack']:<10}{row['strength']:>12g}  {value:<22}{shares}{row['queries']:>10g}")
    return "\n".join(lines)
