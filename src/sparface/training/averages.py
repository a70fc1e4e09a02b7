"""The moving average of weights (EMA) that evaluation prefers."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of networks with a half-life in images seen.

    Parameters are averaged; buffers (BatchNorm statistics, spectral norm's vectors) are copied,
    since an average of unit vectors is none.
    """

    def __init__(self, networks: Mapping[str, nn.Module], half_life: int) -> None:
        self.half_life = half_life
        self.networks = {name: copy.deepcopy(n).eval().requires_grad_(False) for name, n in networks.items()}

    @torch.no_grad()
    def update(self, networks: Mapping[str, nn.Module], images: int) -> None:
        """Move towards `networks` after `images` more images."""
        weight = 1 - 0.5 ** (images / self.half_life)
        for name, average in self.networks.items():
            source = networks[name]
            torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), weight)
            for kept, buffer in zip(average.buffers(), source.buffers(), strict=True):
                kept.copy_(buffer)
