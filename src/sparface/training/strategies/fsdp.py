"""Fully sharded data parallel (FSDP2): parameters, gradients and optimizer states are spread over ranks.

Worth it when a network does not fit: every forward and backward gathers the weights again. What it
costs beside DDP is measured in docs/lab/strategies.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils.parametrize import is_parametrized

from sparface.config import Config
from sparface.errors import UserError
from sparface.sharded import local
from sparface.training.strategies.distributed import Distributed

LEAST, SHARE = 1_000_000, 1 / 16
"""A part of a network is gathered and freed on its own if it has so many parameters, and this share of the
network's: more and smaller units would only add exchanges."""


class FSDP(Distributed):
    """`fully_shard` on each network and on its `blocks`, so that gathering one overlaps with computing
    another. Gradients are averaged over ranks as in DDP."""

    sharded = True
    memory_format = torch.contiguous_format

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises `UserError` for an optimizer that torch can't run on parts of tensors."""
        if config.optimizer.name == "sgd":
            raise UserError("optimizer.name: sgd is not possible with fsdp (torch has no fused SGD on parts)")
        super().__init__(config, device)
        self.mesh = init_device_mesh(device.type, (self.world_size,))

    def spread(self, network: nn.Module) -> nn.Module:
        for block in blocks(network):
            fully_shard(block, mesh=self.mesh)
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


def blocks(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that are worth a unit each, inner ones first: the smallest modules of several
    layers that are large enough without what other units inside them hold."""
    least = max(LEAST, int(SHARE * size(network)))
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> int:
        """Parameters of a module that no unit holds."""
        if is_parametrized(module):  # its weight is also asked for outside of its forward
            return size(module)
        left = sum(p.numel() for p in module.parameters(recurse=False))
        left += sum(walk(child) for child in module.children())
        runs = type(module).forward is not nn.Module.forward  # a list of modules is never called itself
        # a single layer's weight may be used by its parent without calling it, as attention does
        if left < least or not runs or not list(module.children()):
            return left
        found.append(module)
        return 0

    for child in network.children():
        walk(child)
    return found


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
