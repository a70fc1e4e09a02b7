"""Fully sharded data parallel (FSDP2): parameters, gradients and optimizer states are spread over ranks.

Worth it when a network does not fit: every forward and backward gathers the weights again. What it
costs beside DDP is measured in docs/strategies.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from sparface.config import Config
from sparface.errors import UserError
from sparface.training.sharded import local
from sparface.training.strategy import Distributed

UNIT = 1_000_000
"""Parameters from which on a part of a network is gathered and freed on its own."""


class FSDP(Distributed):
    """`fully_shard` on each network, and on its large direct parts, so that gathering one overlaps
    with computing another. Gradients are averaged over ranks as in DDP."""

    sharded = True
    memory_format = torch.contiguous_format

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises `UserError` for an optimizer that torch can't run on parts of tensors."""
        if config.optimizer.name == "sgd":
            raise UserError("optimizer.name: sgd is not possible with fsdp (torch has no fused SGD on parts)")
        super().__init__(config, device)
        self.mesh = init_device_mesh(device.type, (self.world_size,))

    def spread(self, network: nn.Module) -> nn.Module:
        for part in network.children():
            if sum(p.numel() for p in part.parameters()) >= UNIT and callable(getattr(part, "forward", None)):
                fully_shard(part, mesh=self.mesh)
        # also the root gives its weights back after a forward: an evaluation has no backward to do it
        fully_shard(network, mesh=self.mesh, reshard_after_forward=True)
        return network

    def exchange(self, networks: Iterable[nn.Module], *, now: bool) -> None:
        for network in networks:
            assert isinstance(network, FSDPModule)
            network.set_requires_gradient_sync(now)

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        norm = torch.nn.utils.get_total_norm(self.local(gradients))
        squared = norm.square()
        dist.all_reduce(squared)
        return squared.sqrt()

    def local(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [local(tensor) for tensor in tensors]
