"""Square attack for ℓ∞ (Andriushchenko et al. 2020): random search over squares, without gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparface.attacks.attack import Attack, Attacked
from sparface.attacks.goal import Goal
from sparface.randomness import uniform
from sparface.sparring.made import per_face

STREAM = 12_000
"""First stream of `sparface.randomness`; query number q uses q more."""
FIRST_SHARE = 0.8
"""Share of the face that the first squares cover, as in AutoAttack."""
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the squares' area is halved."""


class Square(Attack):
    """Random squares of ±ε, kept where they help. A face that has reached the goal is left alone."""

    needs_gradient = False

    def __call__(self, goal: Goal, faces: Tensor, positions: Tensor) -> Attacked:
        settings = self.settings
        rows = torch.arange(len(faces), device=faces.device)
        x = (faces + self._stripes(faces, positions)).clamp(0, 1)
        margins, queries = goal.judge(x, rows), torch.ones_like(rows)
        for number in range(1, settings.queries):
            rows = rows[margins[rows] >= 0]
            if not len(rows):
                break
            trial = self._with_square(faces[rows], x[rows], positions[rows], number)
            tried = goal.judge(trial, rows)
            better = tried < margins[rows]
            x[rows] = torch.where(per_face(better), trial, x[rows])
            margins[rows] = torch.where(better, tried, margins[rows])
            queries[rows] += 1
        return Attacked(x, queries)

    def _stripes(self, faces: Tensor, positions: Tensor) -> Tensor:
        """Vertical stripes of ±ε, one pixel wide."""
        n, channels, _, width = faces.shape
        signs = self._signs(uniform(self.settings.seed, positions, channels * width, STREAM))
        return self.settings.epsilon * signs.view(n, channels, 1, width).to(faces.dtype)

    def _with_square(self, faces: Tensor, x: Tensor, positions: Tensor, number: int) -> Tensor:
        """Change a square of each face by ±ε, one sign per channel."""
        channels, height, width = faces.shape[1:]
        side = self._side(number, min(height, width))
        draws = uniform(self.settings.seed, positions, 2 + channels, STREAM + number)
        inside = [
            (lambda at, places: (places >= at) & (places < at + side))(
                (draws[:, axis, None] * (length - side + 1)).long(), torch.arange(length, device=x.device)
            )
            for axis, length in enumerate((height, width))
        ]
        mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        change = self.settings.epsilon * self._signs(draws[:, 2:]).to(x.dtype)[:, :, None, None]
        return torch.where(mask, (faces + change).clamp(0, 1), x)

    def _side(self, number: int, shorter: int) -> int:
        """Side of the squares of a query, in pixels."""
        halvings = sum(number > share * self.settings.queries for share in HALVINGS)
        side = round(math.sqrt(FIRST_SHARE / 2**halvings) * shorter)
        return min(max(side, 1), max(1, shorter - 1))

    @staticmethod
    def _signs(draws: Tensor) -> Tensor:
        return torch.where(draws < 0.5, -1.0, 1.0)
