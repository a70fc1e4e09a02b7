"""Auto-PGD (Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks"): PGD that halves its step size, face by face, when the loss stops rising."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparface.attacks.attack import Restarted, moved, random_change, steepest
from sparface.attacks.goal import Goal
from sparface.sparring.made import per_face

START_STREAM = 1400
"""First stream of `sparface.randomness` of the random starts; restart number k uses k more."""
MOMENTUM = 0.75
RHO = 0.75
"""The step size is halved if the loss rose in less than this share of the steps since the last check."""


class APGD(Restarted):
    """The attack that figures of robustness should come from: it has no step size to choose."""

    first_look = 1

    def start(self, faces: Tensor, positions: Tensor, restart: int) -> Tensor:
        """A random start on the bound."""
        settings = self.settings
        change = random_change(faces, settings, positions, START_STREAM + restart)
        if settings.norm == "linf":
            change = settings.epsilon * change / change.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
        return moved(faces, change, settings)

    def climb(self, goal: Goal, faces: Tensor, x: Tensor) -> Tensor:
        """Return the last face that reached the goal or, of faces that never did, the one of largest loss."""
        settings = self.settings
        assert settings.steps is not None
        rows, kind = torch.arange(len(faces), device=faces.device), settings.loss or "margin"
        slope, loss, margin = goal.ascend(x, rows, kind)
        best = _Best(x, slope, loss)
        reached, there = x, margin < 0
        checks = _Checks(loss, settings.epsilon)
        before, due = x, _intervals(settings.steps)
        for number in range(settings.steps):
            step = per_face(checks.step) * steepest(slope, settings.norm)
            ahead = moved(faces, x + step - faces, settings)
            share = MOMENTUM if number else 1.0
            before, x = (
                x,
                moved(faces, x + share * (ahead - x) + (1 - share) * (x - before) - faces, settings),
            )
            slope, loss, margin = goal.ascend(x, rows, kind)
            reached = torch.where(per_face(margin < 0), x, reached)
            there = there | (margin < 0)
            best.update(x, slope, loss)
            checks.note(loss)
            if number + 1 in due:
                halved = checks.check(best.loss)
                x = torch.where(per_face(halved), best.x, x)
                slope = torch.where(per_face(halved), best.slope, slope)
        return torch.where(per_face(there), reached, best.x)


@dataclass
class _Best:
    """The faces of largest loss so far."""

    x: Tensor
    slope: Tensor
    loss: Tensor

    def update(self, x: Tensor, slope: Tensor, loss: Tensor) -> None:
        better = loss > self.loss
        self.x = torch.where(per_face(better), x, self.x)
        self.slope = torch.where(per_face(better), slope, self.slope)
        self.loss = torch.where(better, loss, self.loss)


class _Checks:
    """The step size [N] of each face, and what decides whether to halve it."""

    def __init__(self, loss: Tensor, epsilon: float) -> None:
        self.step = torch.full_like(loss, 2 * epsilon)
        self._best, self._last = loss, loss
        self._rises = torch.zeros_like(loss)
        self._steps = 0
        self._halved = torch.ones_like(loss, dtype=torch.bool)

    def note(self, loss: Tensor) -> None:
        self._rises += loss > self._last
        self._last, self._steps = loss, self._steps + 1

    def check(self, best: Tensor) -> Tensor:
        """Halve the step sizes of faces whose loss rose too seldom, or whose best loss is that of the last
        check; returns which [N]."""
        halved = (self._rises <= RHO * self._steps) | (~self._halved & (self._best >= best))
        self.step = torch.where(halved, self.step / 2, self.step)
        self._best, self._halved = best, halved
        self._rises, self._steps = torch.zeros_like(best), 0
        return halved


def _intervals(steps: int) -> set[int]:
    """The steps after which step sizes are checked: the first after 22 % of all steps; the intervals then
    shrink by 3 % each time, down to 6 %."""
    interval, least, fewer = (max(1, int(share * steps)) for share in (0.22, 0.06, 0.03))
    found, at = set(), interval
    while at <= steps:
        found.add(at)
        interval = max(interval - fewer, least)
        at += interval
    return found
