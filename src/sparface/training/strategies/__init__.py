"""How training is spread over processes, and what an update is there.

`Strategy` is one process, `Distributed` one of several: `DDP` holds all networks on each of them; `FSDP`
and `Zero` shard them. The state of all of them has one form, so that a checkpoint written under one
strategy and number of processes is read under any other.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from sparface.config import Config, TrainingConfig
from sparface.errors import UserError
from sparface.machine import cores_per_process, keep_freed_memory
from sparface.training.strategies.base import Strategy
from sparface.training.strategies.distributed import DDP, Distributed

__all__ = ["DDP", "Distributed", "Strategy", "joining", "open_strategy"]


@contextmanager
def joining(config: TrainingConfig) -> Iterator[None]:
    """End this process when the block takes longer than `training.timeout`.

    Joining the others can hang where torch's own timeouts do not reach: a frozen process that holds the
    store answers nobody.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    timer = threading.Timer(config.timeout, _give_up, [config.timeout])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(seconds: float) -> None:
    text = f"sparface: the processes were not ready together within {seconds:.0f} s (training.timeout)"
    print(text, file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def open_strategy(config: Config) -> Iterator[Strategy]:
    """Join the other processes (torchrun's RANK, WORLD_SIZE, … in the environment) and leave at the end.

    Raises `UserError` when the configured strategy and the environment do not fit.
    """
    training = config.training
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
    device = _device(training, local_rank)
    torch.set_num_threads(training.threads or cores_per_process(local_size))
    keep_freed_memory()
    name = training.strategy
    if name == "auto":
        name = "ddp" if world_size > 1 else "single"
    if name == "single":
        if world_size > 1:
            raise UserError(f"training.strategy: single, but {world_size} processes were started; use ddp")
        yield Strategy(config, device)
        return
    if "RANK" not in os.environ:
        raise UserError(
            f"training.strategy: {name} needs torchrun (`torchrun --nproc-per-node 2 -m sparface train …`)"
            " or `sparface submit`"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=training.timeout))
    try:
        strategy = _distributed(name)(config, device)
        yield strategy
        strategy.close()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _distributed(name: str) -> type[Distributed]:
    """The strategy of that name; what it needs is imported only then."""
    if name == "fsdp":
        from sparface.training.strategies.fsdp import FSDP

        return FSDP
    if name == "deepspeed":
        from sparface.training.strategies.zero import Zero

        return Zero
    return DDP


def _device(config: TrainingConfig, local_rank: int) -> torch.device:
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("training.device: cuda, but this machine has none; use cpu or auto")
    # a scheduler may show each process only its own device
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
