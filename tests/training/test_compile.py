"""Compiled training takes eager's steps, in one process and in two, and is not compiled again.

But for one test the graphs run operator by operator, without inductor, whose C++ compiler takes a minute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from processes import in_processes
from sparface.config import Config
from sparface.errors import UserError
from sparface.models.recognizer import Recognizer
from sparface.recipes import Recipe, build_recipe
from sparface.settings import load
from sparface.shards import Batch
from sparface.training.loop import train
from sparface.training.strategies import distributed
from sparface.training.strategies.base import Strategy
from sparface.training.strategies.distributed import DDP
from tiny_config import TINY

Tiny = Callable[..., Config]
COMPILE = nn.Module.compile
UPDATES = 2
SETTINGS = {
    "recognizer": ["--recipe=recognizer"],
    "shared": ["--recipe=sparring"],
    "alternating": ["--recipe=sparring", "--sparring.update=alternating"],
}
GRAPHS = {"recognizer": 2, "shared": 3, "alternating": 6}
"""One for each network; alternating, each has a second, for the other phase."""


def settings(name: str, *more: str) -> Config:
    options = [f"--{key}={value}" for key, value in TINY.items()]
    return load("smoke", [*options, *SETTINGS[name], "--sparring.attack=targeted", *more])


def recipe(config: Config) -> Recipe:
    """The recipe with the weights of seed 0."""
    torch.manual_seed(0)
    return build_recipe(config, 4)


def alone(config: Config) -> list[dict[str, float]]:
    """The updates of one process."""
    return updates(config, Strategy(config, torch.device("cpu")), recipe(config))


def updates(config: Config, strategy: Strategy, made: Recipe) -> list[dict[str, float]]:
    """The metrics of a few updates."""
    keys = {name: network.state_dict().keys() for name, network in made.networks.items()}
    strategy.prepare(made)
    assert {name: network.state_dict().keys() for name, network in strategy.recipe.networks.items()} == keys
    images = torch.randint(
        0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    mine = torch.arange(8).chunk(strategy.world_size)[strategy.rank]
    batch = Batch(images[mine], mine // 2, [str(number) for number in mine], mine)
    found = []
    for number in range(UPDATES):
        # what was compiled in the first is all there is
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            metrics = strategy.update([batch], 1.0)
        found.append({name: float(strategy.mean(value)) for name, value in metrics.items()})
    return found


def graphs() -> int:
    """How many have been compiled in this process so far; a forward with its backward is one."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def without_inductor() -> None:
    nn.Module.compile = partialmethod(COMPILE, backend="aot_eager")  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def from_the_start() -> Iterator[None]:
    """No graph of another test, and none left for others."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    nn.Module.compile = COMPILE  # type: ignore[method-assign]


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Of each update, all metrics, within what float32 rounds."""
    assert len(found) == UPDATES
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name, precision", [("recognizer", "bf16"), ("alternating", "fp32")])
def test_one_process_takes_eagers_steps(name: str, precision: str) -> None:
    without_inductor()
    before = graphs()
    config, compiled = (
        settings(name, f"--training.precision={precision}", f"--training.compile={chosen}")
        for chosen in ("false", "true")
    )
    expected = alone(config)
    assert graphs() == before
    assert_close(alone(compiled), expected)
    assert graphs() == before + GRAPHS[name]


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """With synced statistics, which are collectives in the middle of the graphs."""
    in_processes(2, work, tmp_path / "found.json")
    assert_close(json.loads((tmp_path / "found.json").read_text()), alone(settings("shared")))


class SmallBuckets(DistributedDataParallel):
    """More than one for the smallest network, at which torch would cut its graph."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, bucket_cap_mb=0.02)


def work(rank: int, file: Path) -> None:
    """One of two processes; rank 0 writes what they found."""
    without_inductor()
    setattr(distributed, "DistributedDataParallel", SmallBuckets)  # noqa: B010
    torch.set_num_threads(1)
    store = f"file://{file.with_name('store')}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    config = settings("shared", "--training.compile=true")
    found = updates(config, DDP(config, torch.device("cpu")), recipe(config))
    assert graphs() == GRAPHS["shared"]
    if rank == 0:
        file.write_text(json.dumps(found))
    dist.destroy_process_group()


def test_inductors_steps_are_eagers() -> None:
    """On the least backbone that has all kinds of layers."""

    def small(config: Config) -> Recipe:
        made = recipe(config)
        backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(30), nn.Flatten(), nn.Linear(4, 32)
        )
        made.networks["recognizer"] = Recognizer(backbone)
        return made

    found = [
        updates(config, Strategy(config, torch.device("cpu")), small(config))
        for config in (settings("recognizer"), settings("recognizer", "--training.compile=true"))
    ]
    assert_close(found[1], found[0])


def test_validation_and_previews_compile_nothing(tiny: Tiny, faces: Path, tmp_path: Path) -> None:
    without_inductor()
    before = graphs()
    moments = ["--training.preview_every=8", "--validation.every=8", f"--validation.shards={faces}"]
    config = tiny("--recipe=sparring", "--training.compile=true", "--schedule.images=24", *moments)
    assert train(config, tmp_path / "run")
    assert graphs() == before + GRAPHS["shared"]


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_what_shards_networks_cannot_compile(strategy: str) -> None:
    with pytest.raises(UserError, match=rf"training\.compile: is not supported with {strategy}; use ddp"):
        settings("recognizer", "--training.compile=true", f"--training.strategy={strategy}")
