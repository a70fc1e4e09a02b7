"""A step never waits for its device. Run by test_under_interpreter.py, with the code that a GPU runs:
Triton's kernels, interpreted; only the interpreter itself may look at values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from triton.runtime.interpreter import GridExecutor
from waiting import Guard, Waits, no_waiting

from sparface.config import Config
from sparface.recipes import build_recipe
from sparface.settings import load
from sparface.shards import Batch
from sparface.training.averages import WeightAverage
from sparface.training.meter import Meter
from sparface.training.strategies.base import Strategy
from sparface.training.strategies.distributed import DDP
from tiny_config import TINY

IDENTITIES = 6
STEPS = {
    "recognizer": ["--recipe=recognizer"],
    "recognizer, groups": ["--recipe=recognizer", "--training.batchnorm=ghost", "--training.kernels=torch"],
    "recognizer, bytes": ["--recipe=recognizer", "--data.variation=none"],
    "recognizer, ArcFace": ["--recipe=recognizer", "--objective.arcface=1", "--objective.mining=batch_hard"],
    **{
        attack: ["--sparring.update=shared", f"--sparring.attack={attack}"]
        for attack in ("untargeted", "targeted", "zero_sum")
    },
    "alternating": ["--sparring.update=alternating"],
    "added": ["--sparring.slots=add"],
    "occlusion": ["--sparring.form=occlusion", "--sparring.warmup_images=6", "--sparring.band_low=0.9"],
    "occlusion, worst": ["--sparring.form=occlusion", "--sparring.choice=worst"],
    "bf16": ["--training.precision=bf16"],
    "fp16": ["--training.precision=fp16", "--optimizer.clip_norm=1"],
    "sgd": ["--optimizer.name=sgd", "--sparring.batchnorm=shared"],
}


@contextmanager
def guarded() -> Iterator[Guard]:
    honest = GridExecutor.__call__

    def launch(executor: GridExecutor, *args: Any, **kwargs: Any) -> Any:
        with watching.allowed():
            return honest(executor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, no_waiting() as watching, watching.allowed():
        patch.setattr(GridExecutor, "__call__", launch)
        yield watching


@pytest.fixture
def guard() -> Iterator[Guard]:
    with guarded() as guard:
        yield guard


def batch(number: int) -> Batch:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    keys = [str(i) for i in range(4)]
    return Batch(images, torch.arange(4) // 2, keys, torch.arange(4) + 4 * number)


def settings(*overrides: str) -> Config:
    options = [f"--{key}={value}" for key, value in TINY.items()]
    common = [
        *("--recipe=sparring", "--size=32", "--training.kernels=triton", "--generator.noise=0.1"),
        *("--data.variation=classic", "--training.device=cpu"),
    ]
    return load("smoke", [*options, *common, *overrides])


@pytest.mark.parametrize("overrides", STEPS.values(), ids=STEPS)
def test_a_step_never_waits(guard: Guard, overrides: list[str]) -> None:
    """Two updates of two batches each, their metrics summed and the weights averaged."""
    config = settings(*overrides)
    strategy = Strategy(config, torch.device("cpu"))
    strategy.prepare(build_recipe(config, IDENTITIES))
    average, meter = WeightAverage(strategy.recipe.networks, 100), Meter()
    batches = [[batch(2 * number), batch(2 * number + 1)] for number in range(2)]
    guard.allowing = False
    for number, some in enumerate(batches):
        metrics = strategy.update([b.to(strategy.device) for b in some], 0.5 + number)
        meter.add(metrics, 8, [])
        average.update(8, 8 * (number + 1))
    guard.allowing = True
    values = meter.interval(strategy).values
    assert values["skipped"] == 0 or config.training.precision == "fp16"  # its scale is still to be found


def test_a_step_of_two_processes_never_waits(tmp_path: Path) -> None:
    """Synced statistics, normalised by the fused kernels: still torch's losses on one process."""
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    config = settings("--training.kernels=torch")
    torch.manual_seed(0)
    strategy = Strategy(config, torch.device("cpu"))
    strategy.prepare(build_recipe(config, IDENTITIES))
    metrics = strategy.update([whole_batch()], 1.0)
    for name in ("loss", "generator_loss", "recognizer/gradient_norm", "generator/gradient_norm"):
        both = (found[0][name] + found[1][name]) / 2
        # statistics of so few faces amplify float32's rounding in gradients; test_two_processes has float64
        rtol = 1e-3 if name.endswith("gradient_norm") else 1e-4
        torch.testing.assert_close(both, metrics[name], rtol=rtol, atol=1e-5)


def whole_batch() -> Batch:
    torch.manual_seed(1)
    return batch(0)


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = settings()
    torch.manual_seed(0)
    strategy = DDP(config, torch.device("cpu"))
    strategy.prepare(build_recipe(config, IDENTITIES))
    part = Batch(*(values[2 * rank : 2 * rank + 2] for values in vars(whole_batch()).values()))
    with guarded() as guard:
        guard.allowing = False
        found = strategy.update([part], 1.0)
        guard.allowing = True
    assert "sparface.kernels.normalise_triton" in sys.modules
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "if": lambda x: bool(x[0] > 0),
    "float": lambda x: float(x[0]),
    "range": lambda x: range(x.long()[0]),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeat": lambda x: x.repeat_interleave(x.long()),
    "host data": lambda x: x + torch.tensor([1.0, 2.0]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_the_guard_sees(guard: Guard, read: Callable[[Tensor], object]) -> None:
    x = torch.ones(2)
    guard.allowing = False
    with pytest.raises(Waits):
        read(x)
    assert x[:1].shape == (1,)
