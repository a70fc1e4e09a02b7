"""Attacks along the gradient: FGSM (Goodfellow et al. 2015), PGD (Madry et al. 2018), and PGD with momentum
(Dong et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparface.attacks.attack import Attack, Attacked, keep_best, moved, random_change, steepest
from sparface.attacks.goal import Goal

START_STREAM = 400
"""First stream of `sparface.randomness` of the random starts; restart number k uses k more."""


class FGSM(Attack):
    """One step of size ε along the sign of the gradient (with `l2`, along the gradient)."""

    def __call__(self, goal: Goal, faces: Tensor, positions: Tensor) -> Attacked:
        rows = torch.arange(len(faces), device=faces.device)
        slope, _, _ = goal.ascend(faces, rows, self.settings.loss or "cross_entropy")
        step = self.settings.epsilon * steepest(slope, self.settings.norm)
        return Attacked((faces + step).clamp(0, 1), torch.ones_like(rows))


class PGD(Attack):
    """Steps along the sign of the gradient (with `l2`, along the gradient), projected back into the bound."""

    def __call__(self, goal: Goal, faces: Tensor, positions: Tensor, start: Tensor | None = None) -> Attacked:
        """`start` [N,3,H,W] replaces the first random start."""
        settings = self.settings
        assert settings.steps is not None
        best = None
        for restart in range(settings.restarts):
            if start is None or restart:
                start = moved(
                    faces, random_change(faces, settings, positions, START_STREAM + restart), settings
                )
            best = keep_best(goal, best, self._climb(goal, faces, start))
        assert best is not None
        return Attacked(best, torch.full_like(positions, settings.steps * settings.restarts))

    def _climb(self, goal: Goal, faces: Tensor, x: Tensor) -> Tensor:
        settings = self.settings
        assert settings.steps is not None and settings.step_size is not None
        rows = torch.arange(len(faces), device=faces.device)
        past = torch.zeros_like(faces)
        for _ in range(settings.steps):
            slope, _, _ = goal.ascend(x, rows, settings.loss or "cross_entropy")
            if settings.momentum:
                scale = slope.abs().mean((1, 2, 3), keepdim=True) + 1e-12
                slope = past = settings.momentum * past + slope / scale
            step = settings.step_size * steepest(slope, settings.norm)
            x = moved(faces, x + step - faces, settings)
        return x
