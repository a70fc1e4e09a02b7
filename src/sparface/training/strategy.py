"""How training is spread over processes: one process, or data parallel (DDP).

A strategy wraps the recipe's networks, hands it a differentiable gather, and makes decisions
common to all ranks. Everything else of the loop is the same for all strategies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparface.config import TrainingConfig
from sparface.errors import UserError
from sparface.machine import usable_cores
from sparface.models.batchnorm import sync_batchnorm
from sparface.recipes import Recipe


class Strategy(Protocol):
    """What the loop needs of a strategy. Methods marked collective are called by all ranks."""

    rank: int
    world_size: int
    device: torch.device

    def prepare(self, recipe: Recipe) -> None:
        """Move the recipe's networks to the device and wrap them for gradient exchange (collective)."""

    @contextmanager
    def exchange(self, networks: Sequence[nn.Module], now: bool) -> Iterator[None]:
        """A backward inside averages gradients over ranks if `now`, else it only accumulates."""

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over ranks (collective)."""

    def any(self, flag: bool) -> bool:
        """True on all ranks when it is True on one (collective)."""


class Single:
    """One process."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, recipe: Recipe) -> None:
        for network in recipe.networks.values():
            network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @contextmanager
    def exchange(self, networks: Sequence[nn.Module], now: bool) -> Iterator[None]:
        yield

    def mean(self, values: Tensor) -> Tensor:
        return values

    def any(self, flag: bool) -> bool:
        return flag


class DDP(Single):
    """Data parallel: every rank holds all networks; gradients are averaged while backward runs.

    With `batchnorm: synced` a step's gradients equal those of one process on the whole batch.
    Buffers are not broadcast: with synced statistics they are equal on all ranks already.
    """

    def __init__(self, device: torch.device, config: TrainingConfig) -> None:
        super().__init__(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.synced = config.batchnorm == "synced"
        # decisions travel beside the tensors, so that they never wait for the device
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.timeout))
        assert isinstance(group, dist.ProcessGroup)  # every rank is in it
        self.decisions = group

    def prepare(self, recipe: Recipe) -> None:
        super().prepare(recipe)
        for name, network in recipe.networks.items():
            if self.synced:
                network = sync_batchnorm(network)
            recipe.networks[name] = DistributedDataParallel(
                network,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        recipe.gather = gather

    @contextmanager
    def exchange(self, networks: Sequence[nn.Module], now: bool) -> Iterator[None]:
        with ExitStack() as stack:
            if not now:
                for network in networks:
                    stack.enter_context(network.no_sync())  # type: ignore[operator]
            yield

    def mean(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world_size

    def any(self, flag: bool) -> bool:
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.decisions)
        return bool(votes)


class _Gather(torch.autograd.Function):
    """All ranks' tensors along dim 0; backward sums the gradient over ranks.

    A loss of the gathered tensor is computed on every rank, so that the sum holds it world-size
    times; DDP's averaging takes that factor out again.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(local: Tensor) -> Tensor:
    """[b, …] of this rank → [world size × b, …] of all ranks in rank order; differentiable."""
    return _Gather.apply(local)  # type: ignore[no-any-return]


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside a strategy's wrapper."""
    return network.module if isinstance(network, DistributedDataParallel) else network


@contextmanager
def open_strategy(config: TrainingConfig) -> Iterator[Strategy]:
    """Join the other processes (torchrun's RANK, WORLD_SIZE, … in the environment) and leave at the end.

    Raises `UserError` when the configured strategy and the environment do not fit.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
    device = _device(config, local_rank)
    torch.set_num_threads(config.threads or max(1, usable_cores() // local_size))
    distributed = config.strategy == "ddp" or (config.strategy == "auto" and world_size > 1)
    if config.strategy == "single" and world_size > 1:
        raise UserError(f"training.strategy: single, but {world_size} processes were started; use ddp")
    if not distributed:
        yield Single(device)
        return
    if "RANK" not in os.environ:
        raise UserError(
            "training.strategy: ddp needs torchrun (`torchrun --nproc-per-node 2 -m sparface train …`)"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=config.timeout))
    try:
        yield DDP(device, config)
    finally:
        dist.destroy_process_group()


def _device(config: TrainingConfig, local_rank: int) -> torch.device:
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("training.device: cuda, but this machine has none; use cpu or auto")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
