"""Fully sharded data parallel (FSDP2): parameters, gradients and optimizer states are sharded over ranks.

Use it when a network does not fit into memory: every forward and backward gathers the weights again.
docs/lab/strategies.md has measurements of its cost relative to DDP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils.parametrize import is_parametrized

from sparface.config import Config
from sparface.errors import UserError
from sparface.recipes import Phase
from sparface.sharded import local
from sparface.training.strategies.distributed import Distributed

LEAST, SHARE = 1_000_000, 1 / 16
"""Minimum size of a part of a network that is gathered and freed as a unit, in parameters and as a share of
the network's. More and smaller units would only add communication."""


class FSDP(Distributed):
    """Applies `fully_shard` to each network and to its `blocks`, so that gathering overlaps with computing.

    Gradients are averaged over ranks as in DDP.
    """

    sharded = True
    memory_format = torch.contiguous_format

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises `UserError` for an optimizer that torch does not support on sharded tensors."""
        if config.optimizer.name == "sgd":
            raise UserError("optimizer.name: sgd is not supported with fsdp; use adam or adamw")
        super().__init__(config, device)
        self.mesh = init_device_mesh(device.type, (self.world_size,))

    def shard(self, network: nn.Module) -> None:
        for block in blocks(network):
            fully_shard(block, mesh=self.mesh)
        # reshard the root after forward too, as evaluation has no backward that would do it
        fully_shard(network, mesh=self.mesh, reshard_after_forward=True)

    def exchange(self, phase: Phase, *, now: bool) -> None:
        for name in phase.updates:
            network = self.recipe.networks[name]
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
    """Return the parts of a network to shard as units, inner ones first.

    These are the smallest modules of several layers that are large enough, not counting parameters of other
    units inside them.
    """
    least = max(LEAST, int(SHARE * size(network)))
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> int:
        """Count the module's parameters that belong to no unit."""
        if is_parametrized(module):  # its weight is also used outside its forward
            return size(module)
        left = sum(p.numel() for p in module.parameters(recurse=False))
        left += sum(walk(child) for child in module.children())
        runs = type(module).forward is not nn.Module.forward  # a ModuleList is never called
        # a parent may use a single layer's weight without calling the layer, as attention does
        if left < least or not runs or not list(module.children()):
            return left
        found.append(module)
        return 0

    for child in network.children():
        walk(child)
    return found


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
