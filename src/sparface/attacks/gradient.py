"""Attacks along the gradient: FGSM (Goodfellow et al. 2015), PGD (Madry et al. 2018), and PGD with momentum
(Dong et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparface.attacks.attack import Attack, Attacked, Restarted, moved, random_change, steepest
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


class PGD(Restarted):
    """Steps along the sign of the gradient (with `l2`, along the gradient), projected back into the bound."""

    def start(self, faces: Tensor, positions: Tensor, restart: int) -> Tensor:
        change = random_change(faces, self.settings, positions, START_STREAM + restart)
        return moved(faces, change, self.settings)

    def climb(self, goal: Goal, faces: Tensor, x: Tensor) -> Tensor:
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
