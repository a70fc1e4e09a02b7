"""The buffers of a network, which a dropped update leaves as they were."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Buffers:
    """BatchNorm's statistics and the like: a forward changes them before anybody knows whether its
    gradients are finite. A few operations for all of them, and none waits for the device."""

    def __init__(self, network: nn.Module) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in network.buffers():
            if buffer.dim() < 2:  # statistics and counters; tables don't change
                by_type.setdefault(buffer.dtype, []).append(buffer.view(-1))  # shares its memory
        self.live = list(by_type.values())
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the present values."""
        self.kept = [torch.cat(live) for live in self.live]

    @torch.no_grad()
    def restore(self, broken: Tensor) -> None:
        """Go back to the values that were kept, if `broken` (on the device) is 1."""
        for live, kept in zip(self.live, self.kept, strict=True):
            right = torch.where(broken > 0, kept, torch.cat(live))
            torch._foreach_copy_(live, torch.split(right, [buffer.numel() for buffer in live]))
