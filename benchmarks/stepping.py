"""A training step for benchmarks: a recipe under its strategy, on batches of noise."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sparface.config import Config
from sparface.faces import draw_set
from sparface.recipes import build_recipe
from sparface.settings import load
from sparface.shards import Batch
from sparface.training.loop import Trainer
from sparface.training.stop import StopRequest
from sparface.training.strategies import open_strategy
from sparface.training.strategies.base import Strategy

IDENTITIES = 221
"""Number of identities in the CelebA set of docs/lab/first-results.md."""
SMALL = ("--size=64", "--recognizer.backbone=timm:resnet18", "--generator.width=8")
"""Overrides for a small network, if FaceNet takes too long."""


def settings(recipe: str, faces: int, *overrides: str) -> Config:
    """`configs/celeba.yaml` with batches of `faces` faces, 4 per identity, and no weight average. Sparring
    faces are added, as in the paper."""
    return load(
        "celeba",
        [
            f"--recipe={recipe}",
            f"--data.identities_per_batch={faces // 4}",
            "--training.average_half_life=0",
            "--sparring.slots=add",
            *overrides,
        ],
    )


class Step:
    """Calling it runs one step on a fixed batch and waits for the device."""

    def __init__(self, config: Config, strategy: Strategy) -> None:
        self.strategy = strategy
        torch.manual_seed(0)
        strategy.prepare(build_recipe(config, IDENTITIES))
        self.batch = random_batch(config, strategy, 0)

    def __call__(self) -> None:
        self.strategy.update([self.batch], 1.0)
        finish_device_work()

    def counted(self) -> Counted:
        """Count the operators of one step: forward, backward and update. The first step has more."""
        with Counted() as counted:
            self()
        return counted


@contextmanager
def step(config: Config) -> Iterator[Step]:
    """Open a step of the configured strategy."""
    with open_strategy(config) as strategy:
        yield Step(config, strategy)


class Counted(TorchDispatchMode):
    """Counts the operators that run inside it, except for those that only make a view.

    torch's `FlopCounterMode` also tracks modules, and fails if a step computes a gradient in its forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        """Approximately the number of kernel launches on a GPU."""
        self.flops = 0
        """Multiplications and additions of matrix products and convolutions."""
        self.bytes = 0
        """Bytes read and written by the operators, without caches."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view:
            self.operators += 1
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        return out


def in_a_pair(work: Callable[..., None], *arguments: Any) -> Any:
    """Run `work(*arguments, file)` in two new processes, like torchrun.

    Returns the JSON that rank 0 writes to `file`.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
        listening.close()
        file = Path(folder) / "found.json"
        mp.spawn(_join, (work, port, (*arguments, file)), nprocs=2)
        return json.loads(file.read_text())


def _join(rank: int, work: Callable[..., None], port: str, arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    work(*arguments)


def finish_device_work() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_batch(config: Config, strategy: Strategy, number: int) -> Batch:
    """This process's part of a batch of noise, on its device."""
    size = config.data.identities_per_batch * config.data.images_per_identity // strategy.world_size
    generator = torch.Generator().manual_seed(number * strategy.world_size + strategy.rank)
    images = torch.randint(
        0, 256, (size, 3, config.size, config.size), dtype=torch.uint8, generator=generator
    ).contiguous(memory_format=torch.channels_last)  # as the stream decodes them
    labels = torch.arange(size) // config.data.images_per_identity
    batch = Batch(images, labels, [str(i) for i in range(size)], torch.arange(size) + number * size)
    return batch.to(strategy.device)


@contextmanager
def trainer(folder: Path, config: Config) -> Iterator[Trainer]:
    """Open a run in `folder` on drawn faces, without validation, ready for its first step."""
    identities = config.data.identities_per_batch * 2
    config.data.shards, config.validation.shards = str(folder / "faces"), ""
    draw_set(folder / "faces", identities, 8, size=config.size, seed=0)
    with opened(folder / "runs" / "measured", config) as found:
        yield found


@contextmanager
def opened(out: Path, config: Config) -> Iterator[Trainer]:
    """Open a new run, ready for its first step."""
    out.mkdir(parents=True)
    with open_strategy(config) as strategy:
        run = Trainer(config, out, strategy, StopRequest())
        with run.tracked():
            yield run
