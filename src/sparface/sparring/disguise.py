"""Disguise: move, warp, light and colour the face, within the bounds of the strong variation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparface.models.disguiser import Disguiser
from sparface.models.sae import GeneratorConfig, draw_noise
from sparface.randomness import normal, uniform
from sparface.sparring.made import Form, Made, Source
from sparface.variation import PARAMETERS, apply, bounded

CANDIDATE_STREAM = 300
"""First stream of `sparface.randomness` of the random draws; the draw with number k uses k more."""
SPREAD_STREAM = 22
SPREAD = 0.5
"""σ of the noise on the generator's choice, before tanh, so that no two disguises of a face are the same."""


class Disguised(Made):
    """Faces changed as `values` [n, PARAMETERS] in [−1, 1] say."""

    def __init__(self, source: Source, values: Tensor) -> None:
        if source.strength is not None:
            values = values * source.strength.view(-1, 1).to(values.dtype)
        self.values = values
        face = apply(source.faces, bounded(self.values)).contiguous(memory_format=torch.channels_last)
        super().__init__(source.faces, face)

    def metrics(self) -> dict[str, Tensor]:
        return {**super().metrics(), "disguise_size": self.values.detach().abs().mean()}

    def pictures(self) -> dict[str, Tensor]:
        return {"change": (self.face - self.source + 1) / 2}


class Disguise(Form):
    """Rotation, scale, shift, perspective, warp, gamma, contrast, light, saturation and tint of a face."""

    pictures: ClassVar[Mapping[str, str]] = {"change": "change of the pixels"}

    @classmethod
    def build(cls, config: GeneratorConfig) -> Disguiser:
        return Disguiser(PARAMETERS, config.width, config.blocks, config.noise)

    @classmethod
    def identity(cls, config: GeneratorConfig) -> list[str | int]:
        return [Disguiser.FORM, PARAMETERS, config.width, config.blocks]

    def random(self, source: Source, number: int = 0) -> Disguised:
        return Disguised(source, self._drawn(source, number))

    def learned(self, generator: nn.Module, source: Source, early: Tensor | None = None) -> Disguised:
        chosen = generator(source.faces, draw_noise(self.generator, self.seed, source.positions))
        spread = normal(self.seed, source.positions, [PARAMETERS], SPREAD_STREAM)
        values = torch.tanh(chosen + SPREAD * spread).to(source.faces.dtype)
        if early is not None:
            values = torch.where(early[:, None], self._drawn(source, 0), values)
        return Disguised(source, values)

    def _drawn(self, source: Source, number: int) -> Tensor:
        draws = uniform(self.seed, source.positions, PARAMETERS, CANDIDATE_STREAM + number)
        return (2 * draws - 1).to(source.faces.dtype)
