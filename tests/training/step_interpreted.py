"""A step never waits for its device. Run by test_under_interpreter.py, with the code that a GPU runs:
Triton's kernels, interpreted; only the interpreter itself may look at values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor
from waiting import Guard, Waits, no_waiting

from sparface import config as configs
from sparface.recipes import build_recipe
from sparface.shards import Batch
from sparface.training.averages import WeightAverage
from sparface.training.meter import Meter
from sparface.training.strategy import Strategy
from tiny_config import TINY

IDENTITIES = 6
STEPS = {
    "recognizer": ["--recipe=recognizer"],
    "recognizer, bytes": ["--recipe=recognizer", "--data.augment=none"],
    "recognizer, ArcFace": ["--recipe=recognizer", "--objective.arcface=1", "--objective.mining=batch_hard"],
    **{
        attack: ["--training.sparring_update=shared", f"--objective.attack={attack}"]
        for attack in ("untargeted", "targeted", "image", "zero_sum")
    },
    "alternating": ["--training.sparring_update=alternating"],
    "bf16": ["--training.precision=bf16"],
    "fp16": ["--training.precision=fp16", "--optimizer.clip_norm=1"],
    "sgd": ["--optimizer.name=sgd", "--training.adversarial_batchnorm=shared"],
}


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    honest = GridExecutor.__call__

    def launch(executor: GridExecutor, *args: Any, **kwargs: Any) -> Any:
        with guard.allowed():
            return honest(executor, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", launch)
    with no_waiting() as guard, guard.allowed():
        yield guard


def batch(number: int) -> Batch:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    keys = [str(i) for i in range(4)]
    return Batch(images, torch.arange(4) // 2, keys, torch.arange(4) + 4 * number)


@pytest.mark.parametrize("overrides", STEPS.values(), ids=STEPS)
def test_a_step_never_waits(guard: Guard, overrides: list[str]) -> None:
    """Two updates of two batches each, their metrics summed and the weights averaged."""
    options = [f"--{key}={value}" for key, value in TINY.items()]
    settings = [
        *("--recipe=sparring", "--size=32", "--training.kernels=triton", "--generator.noise=0.1"),
        *("--data.augment=classic", "--training.device=cpu"),
    ]
    config = configs.load("smoke", [*options, *settings, *overrides])
    strategy = Strategy(config, torch.device("cpu"))
    strategy.prepare(build_recipe(config, IDENTITIES))
    average, meter = WeightAverage(strategy.networks, 100), Meter()
    batches = [[batch(2 * number), batch(2 * number + 1)] for number in range(2)]
    guard.allowing = False
    for number, some in enumerate(batches):
        metrics = strategy.update([b.to(strategy.device) for b in some], 0.5 + number)
        meter.add(metrics, 8, [])
        average.update(8)
    guard.allowing = True
    values, _ = meter.means(strategy)
    assert values["skipped"] == 0 or config.training.precision == "fp16"  # its scale is still to be found


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
