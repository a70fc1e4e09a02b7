"""Watch rules that detect a GAN that has stopped learning: a perfect discriminator, or faces all alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparface.config import StatePolicy, number
from sparface.recipes.base import Metrics, Rule

LEAST = 1e-8
"""Variance below which real faces do not differ at all."""


@dataclass
class NoiseGanWatchConfig:
    """When the discriminator counts as dead or made faces as collapsed, and what to do then (see `watch`)."""

    dead: StatePolicy = "log"
    """Policy for a discriminator that nothing can fool any more, so that the generator learns nothing."""
    right_high: float = number(0.99, most=1)
    """Share of real and made faces that it has to judge rightly for that."""
    collapse: StatePolicy = "log"
    """Policy for made faces that are all alike, or alike for each person."""
    diversity_low: float = number(0.2)
    """They are all alike if their spread is less than this share of that of real faces."""
    variety_low: float = number(0.05)
    """Those of a person are alike if their spread is less than this share of that of their real faces."""
    half_life: int = number(4_000, above=0)
    """Images over which the means of these figures reach half of a change. They start at good values, so only
    what lasts is reported."""


class Levels(nn.Module):
    """Running means of what is watched, in the checkpoint."""

    right: Tensor
    diversity: Tensor
    variety: Tensor

    def __init__(self, half_life: int) -> None:
        super().__init__()
        self.half_life = half_life
        for name, good in (("right", 0.5), ("diversity", 1.0), ("variety", 1.0)):
            self.register_buffer(name, torch.tensor(good))

    @torch.no_grad()
    def observe(self, values: Mapping[str, Tensor], images: int) -> None:
        """Take note of a batch of `images`; the values must be those of all processes."""
        weight = 1 - 0.5 ** (images / self.half_life)
        for name, value in values.items():
            level = self.get_buffer(name)
            level.lerp_(value.to(level.dtype), weight)

    def metrics(self) -> Metrics:
        return {f"{name}_level": level.clone() for name, level in self.named_buffers()}


def diversity(real: Tensor, made: Tensor, group: int) -> Metrics:
    """How much made faces [B,F] spread, relative to real ones [B,F]: `diversity` over all of them and, with
    groups of two or more faces of one person, `variety` within a group. Both are ratios of standard
    deviations."""
    found = {"diversity": _ratio(made[None], real[None])}
    if group > 1:
        found["variety"] = _ratio(*(x.view(-1, group, x.shape[1]) for x in (made, real)))
    return found


def _ratio(made: Tensor, real: Tensor) -> Tensor:
    """Of the standard deviations over dimension 1, of all features and groups together."""
    of_made, of_real = (x.var(1, correction=0).mean() for x in (made, real))
    return (of_made / of_real.clamp(min=LEAST)).sqrt()


def noise_gan_rules(watch: NoiseGanWatchConfig) -> list[Rule]:
    """Return the watch rules."""
    return [
        Rule(
            "dead_discriminator",
            "right_level",
            watch.dead,
            "dead discriminator: it judges {value:.3f} of real and made faces rightly, over {bound:g}, so "
            "the generator learns nothing; lower noise_gan.discriminator_learning_rate or raise noise_gan.r1",
            above=watch.right_high,
        ),
        Rule(
            "collapse",
            "diversity_level",
            watch.collapse,
            "collapsed generator: made faces are all alike, with a spread of {value:.3f} of that of real "
            "ones, under {bound:g}",
            below=watch.diversity_low,
        ),
        Rule(
            "collapse_per_person",
            "variety_level",
            watch.collapse,
            "collapsed generator: it makes one face of each person, with a spread of {value:.3f} of that of "
            "real ones, under {bound:g}",
            below=watch.variety_low,
        ),
    ]
