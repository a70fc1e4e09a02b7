"""On several processes, weights decay, norms and slopes don't, and clipping sees a whole network."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from strategy_chain import forget_numbers
from torch import Tensor
from torch.distributed.tensor import DTensor

from processes import free_port, in_processes
from sparface.config import Config
from sparface.recipes import build_recipe
from sparface.settings import load
from sparface.shards import Batch
from sparface.training.strategies import open_strategy
from tiny_config import TINY

STRATEGIES = {
    "fsdp": ["--training.strategy=fsdp"],
    "zero2": ["--training.strategy=deepspeed", "--training.deepspeed=zero2"],
    "zero3": ["--training.strategy=deepspeed", "--training.deepspeed=zero3"],
}
RATE, DECAY, LIMIT = 1e-4, 100.0, 0.01
OPTIMIZER = f"name=adamw learning_rate={RATE} weight_decay={DECAY} clip_norm={LIMIT}"
Tensors = dict[str, Tensor]


def settings(strategy: str) -> Config:
    options = [f"--{key}={value}" for key, value in TINY.items()]
    options += ["--recipe=recognizer", "--recognizer.backbone=small", "--training.timeout=120"]
    return load("smoke", options + [f"--optimizer.{s}" for s in OPTIMIZER.split()] + STRATEGIES[strategy])


def step(config: Config, rank: int) -> tuple[Tensors, Tensors, Tensors]:
    """The recognizer's parameters before and after an update, and Adam's first moments."""
    made = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=made)
    part = slice(4 * rank, 4 * rank + 4)
    batch = Batch(images[part], (torch.arange(8) // 2)[part], ["face"] * 4, torch.arange(8)[part])
    with open_strategy(config) as strategy:
        recipe = build_recipe(replace(config, training=replace(config.training, seed=0)), 4)
        names = [name for name, _ in recipe.networks["recognizer"].named_parameters()]
        strategy.prepare(recipe)
        before = whole(strategy.tensors()["networks"]["recognizer"], names)
        strategy.update([batch], 1.0)
        state = strategy.tensors()
        after = whole(state["networks"]["recognizer"], names)
        moments = {n: s["exp_avg"] for n, s in state["optimizers"]["recognizer"]["state"].items()}
        return before, after, whole(moments, names)


def whole(state: Tensors, names: list[str]) -> Tensors:
    tensors = {name: state[name].detach() for name in names}
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for n, t in tensors.items()}


def work(rank: int, folder: Path, ports: list[int]) -> None:
    torch.manual_seed(0)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    for strategy, port in zip(STRATEGIES, ports, strict=True):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        forget_numbers()
        found = step(settings(strategy), rank)
        if rank == 0:
            torch.save(found, folder / strategy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("decay")
    in_processes(2, work, made, [free_port() for _ in STRATEGIES])
    return made


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parameters_of_one_dimension_do_not_decay(folder: Path, strategy: str) -> None:
    """The first step of Adam is at most the rate; the decay of a weight of 1 is a hundred times that."""
    before, after, _ = torch.load(folder / strategy)
    assert {w.ndim for w in before.values()} == {1, 2, 4}
    for name, weight in before.items():
        kept = 1 - RATE * DECAY if weight.ndim > 1 else 1
        assert (after[name] - kept * weight).abs().max() <= 1.01 * RATE, name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_gradient_of_the_whole_network_is_clipped(folder: Path, strategy: str) -> None:
    """After one step, Adam's first moment is a tenth of the gradient."""
    moments = torch.load(folder / strategy)[2]
    length = torch.cat([moment.flatten() for moment in moments.values()]).norm()
    assert float(length) == pytest.approx(0.1 * LIMIT, rel=1e-3)
