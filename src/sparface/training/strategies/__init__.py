"""Strategies: how training runs on one or several processes.

`Strategy` is a single process and `Distributed` one of several. `DDP` replicates the networks; `FSDP` and
`Zero` shard them. All strategies save state in the same format, so a checkpoint can be resumed under any
other strategy and number of processes.
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
    """Context manager: end this process if the block takes longer than `training.timeout`.

    Joining the process group can hang despite torch's own timeouts, for example if the process that holds
    the store is frozen.
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
    text = f"sparface: not all processes were ready within {seconds:.0f} s (training.timeout)"
    print(text, file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def open_strategy(config: Config) -> Iterator[Strategy]:
    """Context manager: join the process group that torchrun's RANK, WORLD_SIZE, … describe; leave it on exit.

    Raises `UserError` if the configured strategy does not fit the environment.
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
    """Import and return the strategy of this name."""
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
        raise UserError("training.device: cuda, but this machine has no CUDA device; use cpu or auto")
    # a scheduler may expose only one device to each process
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
