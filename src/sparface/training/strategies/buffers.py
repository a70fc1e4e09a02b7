"""Restore a network's buffers when an update is skipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Buffers:
    """A network's buffers, such as BatchNorm statistics.

    A forward changes them before it is known whether the gradients are finite. Keeping and restoring takes
    a few operations for all buffers together, without synchronising with the device.
    """

    def __init__(self, network: nn.Module) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in network.buffers():
            if buffer.dim() < 2:  # statistics and counters; tables do not change
                by_type.setdefault(buffer.dtype, []).append(buffer.view(-1))  # shares its memory
        self.live = list(by_type.values())
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Keep a copy of the current values."""
        self.kept = [torch.cat(live) for live in self.live]

    @torch.no_grad()
    def restore(self, broken: Tensor) -> None:
        """Restore the kept values if `broken` (on the device) is 1."""
        for live, kept in zip(self.live, self.kept, strict=True):
            right = torch.where(broken > 0, kept, torch.cat(live))
            torch._foreach_copy_(live, torch.split(right, [buffer.numel() for buffer in live]))
