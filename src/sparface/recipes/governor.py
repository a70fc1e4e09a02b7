"""The governor: keeps sparring neither too easy nor too hard."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST = 1 / 16
"""The lowest strength."""
HALVING = 2_000
"""Images outside of the band over which the strength halves or doubles."""


class Governor(nn.Module):
    """Lowers the strength while accuracy on sparring faces is under a band, raises it while it is over."""

    strength: Tensor
    """Scalar from `LEAST` to 1, in the checkpoint."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("strength", torch.ones(()))

    @torch.no_grad()
    def observe(self, accuracy: Tensor, images: int) -> None:
        """Adjust the strength after a batch of `images`; `accuracy` must be that of all processes."""
        direction = (accuracy > self.high).float() - (accuracy < self.low).float()
        self.strength.mul_(torch.exp2(direction * (images / HALVING))).clamp_(LEAST, 1)
