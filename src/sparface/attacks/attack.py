"""What all attacks on trained networks have in common, and the bounds that they keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparface.attacks.goal import Goal
from sparface.attacks.settings import AttackConfig
from sparface.randomness import normal, uniform
from sparface.sparring.made import per_face

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Attacked:
    """The result of an attack on N faces."""

    faces: Tensor
    """[N,3,H,W] in [0,1]."""
    queries: Tensor
    """int64 [N]: how many faces the network has seen for each."""


class Attack(ABC):
    """An attack. Its draws depend on the seed and the faces' positions only."""

    needs_gradient: ClassVar[bool] = True

    def __init__(self, settings: AttackConfig) -> None:
        """`settings` must be resolved."""
        self.settings = settings

    @abstractmethod
    def __call__(self, goal: Goal, faces: Tensor, positions: Tensor) -> Attacked:
        """Attack faces [N,3,H,W] in [0,1], which are the goal's, in its order; `positions` is int64 [N].

        No value of a face leaves [0,1], and no face leaves the bound. All faces are on the device at once,
        and so are the network's activations for them.
        """


class Restarted(Attack):
    """An attack that climbs from random starts, of which the best result is kept."""

    first_look: ClassVar[int] = 0
    """Forwards before the first step."""

    def __call__(self, goal: Goal, faces: Tensor, positions: Tensor, start: Tensor | None = None) -> Attacked:
        """`start` [N,3,H,W] replaces the first random start."""
        settings, best = self.settings, None
        assert settings.steps is not None
        for restart in range(settings.restarts):
            if start is None or restart:
                start = self.start(faces, positions, restart)
            best = keep_best(goal, best, self.climb(goal, faces, start))
        assert best is not None
        queries = (settings.steps + self.first_look) * settings.restarts
        return Attacked(best, torch.full_like(positions, queries))

    @abstractmethod
    def start(self, faces: Tensor, positions: Tensor, restart: int) -> Tensor:
        """Draw a start for each face, within the bound."""

    @abstractmethod
    def climb(self, goal: Goal, faces: Tensor, x: Tensor) -> Tensor:
        """Return the faces that a run from the starts `x` ends with."""


def project(change: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """The nearest change [N,3,H,W] within the bound."""
    if norm == "linf":
        return change.clamp(-epsilon, epsilon)
    return change * (epsilon / lengths(change)).clamp(max=1)


def steepest(slope: Tensor, norm: Norm) -> Tensor:
    """The change of size 1 along which a loss with gradient `slope` [N,3,H,W] rises most."""
    return slope.sign() if norm == "linf" else slope / lengths(slope)


def lengths(change: Tensor) -> Tensor:
    """Euclidean norm of each face's change [N,1,1,1], above 0."""
    return per_face(change.flatten(1).norm(dim=1) + 1e-10)


def random_change(faces: Tensor, settings: AttackConfig, positions: Tensor, stream: int) -> Tensor:
    """A random change of each face: uniform within `linf`; in a random direction, and of the largest length,
    with `l2`."""
    count = faces[0].numel()
    if settings.norm == "linf":
        draws = 2 * uniform(settings.seed, positions, count, stream) - 1
        return settings.epsilon * draws.view_as(faces).to(faces.dtype)
    drawn = normal(settings.seed, positions, list(faces.shape[1:]), stream).to(faces.dtype)
    return settings.epsilon * steepest(drawn, "l2")


def moved(faces: Tensor, change: Tensor, settings: AttackConfig) -> Tensor:
    """Faces [N,3,H,W] changed within the bound and [0,1]."""
    return (faces + project(change, settings.epsilon, settings.norm)).clamp(0, 1)


def keep_best(goal: Goal, found: Tensor | None, new: Tensor) -> Tensor:
    """Of two attacks on the same faces, the one with the smaller margin, face by face."""
    if found is None:
        return new
    rows = torch.arange(len(new), device=new.device)
    better = goal.judge(new, rows) < goal.judge(found, rows)
    return torch.where(per_face(better), new, found)
