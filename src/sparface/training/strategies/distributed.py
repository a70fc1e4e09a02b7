"""Training on several processes: collective decisions, and data parallelism with replicated networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sparface.config import Config
from sparface.models.batchnorm import JointBatchNorm
from sparface.models.synced import SyncedBatchNorm
from sparface.recipes import FaceBatch, Metrics, Phase, Recipe
from sparface.training.strategies.base import Strategy

T = TypeVar("T")
# not all supported versions of torch have the new name
warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
warnings.filterwarnings("ignore", message="`torch.distributed.reduce_scatter_tensor` is deprecated")


class Distributed(Strategy):
    """One of several processes. Implements collective decisions; subclasses implement the updates.

    With `batchnorm: synced` or `ghost`, the gradients equal those of one process on the whole batch.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # decisions use their own group on the CPU, so that they never wait for the device
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.training.timeout))
        assert isinstance(group, dist.ProcessGroup)  # every rank is in it
        self.decisions = group
        self.pending: tuple[dist.Work, Tensor] | None = None

    def prepare(self, recipe: Recipe) -> None:
        super().prepare(recipe)
        recipe.gather = gather
        recipe.meet = self.meet

    def batchnorm(self) -> Callable[[_BatchNorm], JointBatchNorm] | None:
        return SyncedBatchNorm if self.config.training.batchnorm == "synced" else super().batchnorm()

    @torch.no_grad()
    def meet(self, averages: Sequence[Tensor] = ()) -> None:
        if self.statistics:  # synced ones are equal already
            met = [*self.statistics, *averages]
            means = torch.cat(met) / self.world_size
            dist.all_reduce(means)
            torch._foreach_copy_(met, torch.split(means, [len(own) for own in met]))

    def mean(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world_size

    def any(self, flag: bool) -> bool:
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.decisions)
        return bool(votes)

    def vote(self, flag: bool) -> bool:
        pending, votes = self.pending, torch.tensor([int(flag)])
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.decisions, async_op=True)
        self.pending = work, votes
        if pending is None:
            return False
        pending[0].wait()
        return bool(pending[1])

    def of_rank(self, rank: int, value: Tensor) -> Tensor:
        value = value.clone()
        dist.broadcast(value, rank)
        return value

    def everyone(self, value: T) -> list[T]:
        values = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.decisions)
        return values


class Together(nn.Module):
    """The networks that a phase updates, as one module whose forward computes the phase's loss.

    Whatever wraps it sees one forward and one backward, whatever the networks exchange.
    """

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, loss: Callable[[], tuple[Tensor, Metrics]]) -> tuple[Tensor, Metrics]:
        return loss()


class DDP(Distributed):
    """Data parallelism: every rank holds all networks; gradients are averaged during backward.

    The networks of a phase share their buckets, so small networks are averaged in one exchange. Buffers are
    not broadcast: synced statistics are equal, and others meet where they are read.
    """

    def prepare(self, recipe: Recipe) -> None:
        super().prepare(recipe)
        self.reducers = {
            names: DistributedDataParallel(
                Together({name: recipe.networks[name] for name in names}),
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
            for names in dict.fromkeys(phase.updates for phase in recipe.phases())
        }

    def loss(self, phase: Phase, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        return self.reducers[phase.updates](partial(super().loss, phase, batch))  # type: ignore[no-any-return]

    def warm_up(self, batch: Callable[[], FaceBatch]) -> None:
        """Run one backward per phase.

        DDP rebuilds its buckets after the first backward, which changes the order of summation on more than
        two processes. Without this, a resumed run would differ in its first update from an uninterrupted one.
        """
        if self.world_size <= 2:
            return
        changing = [buffer for network in self.recipe.networks.values() for buffer in network.buffers()]
        changing += [t for module in self.recipe.frozen.values() for t in module.state_dict().values()]
        kept = [(tensor, tensor.clone()) for tensor in changing]
        for phase in self.recipe.phases():
            self.train_only(phase.updates)
            self.backward(phase, batch(), 1.0, last=True)
        for network in self.recipe.networks.values():
            network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)

    def exchange(self, phase: Phase, *, now: bool) -> None:
        self.reducers[phase.updates].require_backward_grad_sync = now  # what no_sync() sets


class _Gather(torch.autograd.Function):
    """Gather tensors from all ranks along dim 0, row by row as bytes; backward sums gradients over ranks.

    Ranks' losses are parts of a mean over ranks, so averaging the weights' gradients over ranks is right.
    """

    @staticmethod
    def forward(ctx: Any, *local: Tensor) -> tuple[Tensor, ...]:
        own = [tensor.contiguous().view(len(tensor), -1).view(torch.uint8) for tensor in local]
        rows = torch.cat(own, 1)
        everyone = rows.new_empty(dist.get_world_size() * len(rows), rows.shape[1])
        dist.all_gather_into_tensor(everyone, rows)
        parts = torch.split(everyone, [part.shape[1] for part in own], 1)
        gathered = tuple(
            part.contiguous().view(tensor.dtype).view(-1, *tensor.shape[1:])
            for part, tensor in zip(parts, local, strict=True)
        )
        ctx.mark_non_differentiable(*(tensor for tensor in gathered if not tensor.is_floating_point()))
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            _sum_to_own(gradient) if needed else None
            for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=True)
        )


def _sum_to_own(gradient: Tensor) -> Tensor:
    """Sum gradients [B, …] over ranks; return this rank's part [b, …]."""
    own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
    dist.reduce_scatter_tensor(own, gradient.contiguous())
    return own


def gather(*local: Tensor) -> tuple[Tensor, ...]:
    """Gather tensors [b, …] from every rank into [world size × b, …], in rank order; differentiable."""
    return _Gather.apply(*local)  # type: ignore[no-any-return]
