"""Perturbation: a bounded change of every pixel, weighted by a mask (Li, Li & Li, after SSAE)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparface.kernels.synthesize import Synthesized, synthesize, synthesize_whitened
from sparface.kernels.whiten import input_dtype, whiten
from sparface.models.sae import SAE, GeneratorConfig, build_generator, draw_noise
from sparface.randomness import normal
from sparface.sparring.made import Form, Made, Source, per_face
from sparface.variation.fields import smooth

CANDIDATE_STREAM = 200
"""First stream of `sparface.randomness` of the random draws; the draw with number k uses k more."""
POINTS = (4, 16)
"""Points per side of the random fields, coarse and fine."""


class Perturbed(Made):
    """Faces changed by ε·δ·m, with the perturbation δ [n,3,H,W] in [−1,1] and the mask m."""

    mask: Tensor

    def __init__(self, source: Tensor, perturbation: Tensor, mask: Tensor, epsilon: float) -> None:
        self.source, self.perturbation, self.mask = source, perturbation, mask
        self.epsilon = epsilon

    @cached_property
    def made(self) -> Synthesized:
        return synthesize_whitened(
            self.source, self.perturbation, self.mask, self.epsilon, input_dtype(self.source)
        )

    @property
    def face(self) -> Tensor:
        return synthesize(self.source, self.perturbation, self.mask, self.epsilon)

    def whitened(self, real: Tensor, dtype: torch.dtype) -> Tensor:
        """As always; if `real` are the very sources, they are whitened already."""
        if real is self.source:
            return self.made.whitened
        return torch.cat([whiten(real, dtype), self.made.whitened[len(self.source) :]])

    def penalty(self, of_norm: float, of_area: float, free: float) -> Tensor:
        excess = (self.made.area - free).clamp(min=0)
        return of_norm * self.made.norm.mean() + of_area * excess.mean()

    def metrics(self) -> dict[str, Tensor]:
        return {
            "perturbation_norm": self.made.norm.detach().mean(),
            "mask_mean": self.made.area.detach().mean(),
            "perturbation_mean": self.made.applied.mean(),
        }

    def pictures(self) -> dict[str, Tensor]:
        return {"perturbation": (self.perturbation * self.mask + 1) / 2, **super().pictures()}


class Perturbation(Form):
    """The saliency autoencoder's form."""

    pictures: ClassVar[Mapping[str, str]] = {"perturbation": "perturbation δ·m", "mask": "mask"}

    @classmethod
    def build(cls, config: GeneratorConfig) -> SAE:
        return build_generator(config)

    @classmethod
    def identity(cls, config: GeneratorConfig) -> list[str | int]:
        return [SAE.FORM, config.width, config.blocks]

    def random(self, source: Source, number: int = 0) -> Perturbed:
        """Draw δ as tanh of smooth noise at two scales, and m as a smooth blot."""
        counts = [3 * n * n for n in POINTS]
        drawn = normal(self.seed, source.positions, [sum(counts) + 16], CANDIDATE_STREAM + number)
        fields = torch.split(drawn.to(source.faces.dtype), [*counts, 16], 1)
        coarse, fine, blot = (
            smooth(values.reshape(-1, channels, n, n), source.faces.shape[2:], "bilinear")
            for values, channels, n in zip(fields, (3, 3, 1), (*POINTS, 4), strict=True)
        )
        return self._made(source, torch.tanh(2 * (coarse + fine)), torch.sigmoid(3 * blot))

    def learned(self, generator: nn.Module, source: Source, early: Tensor | None = None) -> Perturbed:
        perturbation, mask = generator(source.faces, draw_noise(self.generator, self.seed, source.positions))
        if early is not None:
            drawn = self.random(source)
            perturbation = torch.where(per_face(early), drawn.perturbation, perturbation)
            mask = torch.where(per_face(early), drawn.mask, mask)
        return self._made(source, perturbation, mask)

    def _made(self, source: Source, perturbation: Tensor, mask: Tensor) -> Perturbed:
        if source.strength is not None:
            perturbation = perturbation * per_face(source.strength).to(perturbation.dtype)
        return Perturbed(source.faces, perturbation, mask, self.generator.epsilon)
