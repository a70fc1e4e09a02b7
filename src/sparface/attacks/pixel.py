"""Attacks on a few pixels (Su, Vargas & Sakurai 2019, "One pixel attack for fooling deep neural networks").

A candidate is a place and a colour for each pixel. Candidates are searched for by differential evolution, or
drawn at random. Those of all faces are tried together, so the network works on full batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparface.attacks.attack import Attack, Attacked
from sparface.attacks.goal import Goal
from sparface.randomness import uniform

STREAM = 500
"""First stream of `sparface.randomness`; generation number g uses g more."""
GENES = 5
"""Numbers in [0, 1) of one pixel: row, column, red, green, blue."""
BATCHES = {"cpu": 64}
"""Faces per forward by type of device: what stays in a CPU's cache is faster."""
BATCH = 1024
"""Faces per forward on other devices."""


@dataclass
class _Population:
    """Candidates of n faces, and their margins."""

    genes: Tensor
    """[n, population, pixels · GENES] in [0, 1)."""
    margins: Tensor
    """[n, population]."""

    def part(self, kept: Tensor) -> _Population:
        return _Population(self.genes[kept], self.margins[kept])

    def best(self) -> tuple[Tensor, Tensor]:
        """The genes [n, …] and the margin [n] of each face's best candidate."""
        margins, which = self.margins.min(1)
        return self.genes[torch.arange(len(which), device=which.device), which], margins


class Pixel(Attack):
    """Changes a few pixels of a face, without gradients. A face is not tried further once it has reached the
    goal."""

    needs_gradient = False

    def __call__(self, goal: Goal, faces: Tensor, positions: Tensor) -> Attacked:
        settings = self.settings
        assert settings.steps is not None
        rows = torch.arange(len(faces), device=faces.device)
        genes, queries = self._random(positions, 0), torch.full_like(rows, settings.population)
        people = _Population(genes, self._judge(goal, faces, rows, genes))
        chosen = people.best()[0].clone()
        for generation in range(1, settings.steps + 1):
            open_ = people.best()[1] >= 0
            people, rows = people.part(open_), rows[open_]
            if not len(rows):
                break
            genes = self._next(people, positions[rows], generation)
            margins = self._judge(goal, faces, rows, genes)
            better = margins <= people.margins
            people = _Population(
                torch.where(better[:, :, None], genes, people.genes),
                torch.where(better, margins, people.margins),
            )
            queries[rows] += settings.population
            chosen[rows] = people.best()[0]
        return Attacked(set_pixels(faces.clone(), chosen), queries)

    def _random(self, positions: Tensor, generation: int) -> Tensor:
        """Candidates [n, population, pixels · GENES] drawn at random."""
        shape = (len(positions), self.settings.population, self.settings.pixels * GENES)
        return uniform(self.settings.seed, positions, shape[1] * shape[2], STREAM + generation).view(shape)

    def _next(self, people: _Population, positions: Tensor, generation: int) -> Tensor:
        """The candidates of the next generation."""
        if self.settings.search == "random":
            return self._random(positions, generation)
        return self._evolved(people, positions, generation)

    def _evolved(self, people: _Population, positions: Tensor, generation: int) -> Tensor:
        """The best candidate plus a scaled difference of two others, as SciPy's `best1bin` with a dithered
        mutation and recombination 1. What leaves the range is drawn anew."""
        n, population, genes = people.genes.shape
        draws = uniform(self.settings.seed, positions, population * (genes + 2) + 1, STREAM + generation)
        factor = 0.5 + 0.5 * draws[:, 0, None, None]
        draws = draws[:, 1:].view(n, population, genes + 2)
        others = torch.arange(population, device=draws.device)
        first = (others + 1 + (draws[:, :, 0] * (population - 1)).long()) % population
        # the second one is neither the candidate itself nor the first
        gap = (first - others) % population
        second = 1 + (draws[:, :, 1] * (population - 2)).long()
        second = (others + second + (second >= gap)) % population
        at = torch.arange(n, device=draws.device)[:, None]
        trial = people.best()[0][:, None] + factor * (people.genes[at, first] - people.genes[at, second])
        return torch.where((trial < 0) | (trial >= 1), draws[:, :, 2:], trial)

    def _judge(self, goal: Goal, faces: Tensor, rows: Tensor, genes: Tensor) -> Tensor:
        """The margins [n, population] of candidates, a batch of them in memory at a time."""
        n, population, _ = genes.shape
        size = BATCHES.get(faces.device.type, BATCH)
        flat, owner = genes.flatten(0, 1), rows.repeat_interleave(population)
        margins = [
            goal.judge(set_pixels(faces[which], some), which, size)
            for some, which in zip(torch.split(flat, size), torch.split(owner, size), strict=True)
        ]
        return torch.cat(margins).view(n, population)


def set_pixels(faces: Tensor, genes: Tensor) -> Tensor:
    """Set the pixels that `genes` [n, pixels · GENES] say in faces [n,3,H,W], in place; returns the faces."""
    n, _, height, width = faces.shape
    face = torch.arange(n, device=faces.device)
    # one pixel after the other: of two at the same place, the later one counts, on every device
    for pixel in genes.view(n, -1, GENES).to(faces.dtype).unbind(1):
        row = (pixel[:, 0] * height).long().clamp(max=height - 1)
        column = (pixel[:, 1] * width).long().clamp(max=width - 1)
        faces[face, :, row, column] = pixel[:, 2:]
    return faces
