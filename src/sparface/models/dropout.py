"""Dropout whose masks depend on (seed, position in the stream), not on the process that draws them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparface.randomness import uniform

STREAM = 9
"""Stream of `sparface.randomness`."""


class Dropout(nn.Module):
    """Zeroes a share `p` of the features [B, features, …] and scales the others by 1 / (1 − p).

    Only in training mode and inside `dropping`; otherwise it returns its input. See Srivastava et al. 2014.
    """

    def __init__(self, features: int, p: float) -> None:
        super().__init__()
        self.features, self.p = features, p
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None or not self.training:
            return x
        return x * self.mask.to(x.dtype).view(x.shape)


@contextmanager
def dropping(network: nn.Module, seed: int, positions: Tensor) -> Iterator[None]:
    """Context in which a network in training mode drops features.

    The masks are functions of `seed` and of each face's position in the stream (int64 [B]), so a step is the
    same with any number of processes. They are drawn here, outside of a compiled network.
    """
    modules = [module for module in network.modules() if isinstance(module, Dropout) and module.p]
    for module in modules:
        kept = uniform(seed, positions, module.features, STREAM) >= module.p
        module.mask = kept.to(torch.get_default_dtype()) / (1 - module.p)
    try:
        yield
    finally:
        for module in modules:
            module.mask = None
