"""Salient occlusion: cover a part of the face, where it does the most damage.

The occluder's size, tilt and texture are always drawn at random; only its place is chosen. The generator
predicts the damage of each place. It learns from the outcome: every covered face says how much damage its
place did. (The gradient at the face would only say how the loss changes with the first trace of a cover.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparface.models.placer import GRID, Placer
from sparface.models.sae import GeneratorConfig
from sparface.randomness import uniform
from sparface.sparring.made import Form, Made, Source
from sparface.variation.occluders import WIDE, Occluders, coverage, draw_occluders

CANDIDATE_STREAM = 100
"""First stream of `sparface.randomness` of the random draws; the draw with number k uses k more."""
PLACE_STREAM = 20
SHARPNESS = 3.0
"""Logits of the places are the predicted damage, standardised per face, times this."""
FLOOR = 0.05
"""Differences of the predicted damage below this (in standard deviations of the damage) are not trusted."""
EXPLORED = 0.1
"""Share of faces that are covered at a random place, so that no place's damage is forgotten."""


class Covered(Made):
    """Faces with occluders, and the generator's prediction."""

    def __init__(self, source: Tensor, occluders: Occluders, effect: Tensor | None, place: Tensor) -> None:
        """`effect` [n, places] is the predicted damage, `place` int64 [n] the place that was covered."""
        self.effect, self.place = effect, place
        mask = coverage(occluders, source.shape[2:])
        face = torch.lerp(source, occluders.texture.to(source.dtype), mask.to(source.dtype))
        super().__init__(source, face, mask)

    def lesson(self, damage: Tensor) -> Tensor | None:
        if self.effect is None:
            return None
        predicted = self.effect.gather(1, self.place[:, None])[:, 0]
        return (predicted - damage).square().mean()

    def metrics(self) -> dict[str, Tensor]:
        if self.effect is None:
            return super().metrics()
        chosen = preference(self.effect.detach()).mean(0)
        spread = (-(chosen * chosen.clamp(min=1e-12).log()).sum()).exp() / chosen.numel()
        return {**super().metrics(), "places": spread}

    def pictures(self) -> dict[str, Tensor]:
        if self.effect is None:
            return super().pictures()
        chosen = preference(self.effect).view(-1, 1, GRID, GRID)
        chosen = nn.functional.interpolate(chosen / chosen.amax((2, 3), keepdim=True), self.source.shape[2:])
        return {"places": chosen.expand_as(self.source), **super().pictures()}


class Occlusion(Form):
    """A textured rectangle over a part of the face."""

    pictures: ClassVar[Mapping[str, str]] = {
        "places": "where a cover is expected to do damage",
        "mask": "mask",
    }
    by_outcome: ClassVar[bool] = True

    family = WIDE

    @classmethod
    def build(cls, config: GeneratorConfig) -> Placer:
        return Placer(config.width, config.blocks)

    @classmethod
    def identity(cls, config: GeneratorConfig) -> list[str | int]:
        return [Placer.FORM, GRID, config.width, config.blocks]

    def random(self, source: Source, number: int = 0) -> Covered:
        occluders = self._occluders(source, number)
        return Covered(source.faces, occluders, None, self._place(occluders.centre))

    def learned(self, generator: nn.Module, source: Source, early: Tensor | None = None) -> Covered:
        occluders = self._occluders(source, 0)
        at_random = self._place(occluders.centre)
        effect = generator(source.faces).flatten(1)
        draws = uniform(self.seed, source.positions, 1 + GRID * GRID, PLACE_STREAM).to(effect.dtype)
        explored = draws[:, 0] < EXPLORED
        if early is not None:
            explored |= early
        # the largest of log-probabilities plus Gumbel noise is a draw from the probabilities
        noise = -(-draws[:, 1:].clamp(min=2**-25).log()).log()
        chosen = (preference(effect.detach()).log() + noise).argmax(1)
        place = torch.where(explored, at_random, chosen)
        moved = (self._corner(place) - self._corner(at_random)).to(occluders.centre.dtype)
        return Covered(source.faces, replace(occluders, centre=occluders.centre + moved), effect, place)

    def _occluders(self, source: Source, number: int) -> Occluders:
        drawn = draw_occluders(
            source.faces, self.seed, source.positions, self.family, CANDIDATE_STREAM + number
        )
        if source.strength is None:
            return drawn
        return replace(drawn, size=drawn.size * source.strength.sqrt().view(-1, 1))

    def _place(self, centre: Tensor) -> Tensor:
        """The place int64 [n] that contains a centre [n,2]."""
        column, row = ((centre / self.family.reach + 1) * (GRID / 2)).long().clamp(0, GRID - 1).unbind(1)
        return row * GRID + column

    def _corner(self, place: Tensor) -> Tensor:
        """The upper left corner [n,2] of a place."""
        return torch.stack([place % GRID, place // GRID], 1) * (2 * self.family.reach / GRID)


def preference(effect: Tensor) -> Tensor:
    """The probability of each place, from the predicted damage [n, places] in standard deviations."""
    deviation, mean = torch.std_mean(effect, 1, keepdim=True)
    return torch.softmax(SHARPNESS * (effect - mean) / (deviation + FLOOR), 1)
