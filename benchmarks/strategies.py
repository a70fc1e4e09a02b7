"""Step time and memory of every strategy, beside DDP, on two processes.

FaceNet at 112 pixels (or a small network with --quick). All strategies take their turns in every round, so
that a machine that slows down slows all, each time in a new pair of processes, so that nobody's memory is
another's. Memory is what a process holds of weights, gradients and optimizer states after a step; on a GPU
also the peak of a step. The last line is one JSON object.

    python benchmarks/strategies.py [--recipe sparring] [--steps 3] [--rounds 3]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from measured import table
from stepping import IDENTITIES, in_a_pair, random_batch
from torch import distributed as dist

from sparface.config import Config
from sparface.recipes import build_recipe
from sparface.settings import load
from sparface.training.strategies import open_strategy
from sparface.training.strategies.base import Strategy

STRATEGIES = ["ddp", "fsdp", "zero0", "zero1", "zero2", "zero3"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=["recognizer", "sparring"], default="sparring")
    parser.add_argument("--steps", type=int, default=3, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="faces over both processes")
    parser.add_argument("--quick", action="store_true", help="a small network, one round")
    a = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    memory = {}
    for number in range(1 if a.quick else a.rounds):
        for name in reversed(STRATEGIES) if number % 2 else STRATEGIES:
            times, memory[name] = in_a_pair(work, settings(a, name), a.steps)
            seconds[name] += times
    base = statistics.median(seconds["ddp"])
    ratios = {name: round(statistics.median(times) / base, 3) for name, times in seconds.items()}
    table(seconds, "seconds a step")
    for name, held in memory.items():
        print(f"{name}: {ratios[name]:.2f} of DDP's time, " + ", ".join(f"{k} {v}" for k, v in held.items()))
    network = "small" if a.quick else "FaceNet at 112"
    worst = max(ratios.values())
    told = {"recipe": a.recipe, "batch": a.batch, "network": network, "ratios": ratios, "memory": memory}
    print(json.dumps({"name": "strategies", "ratio": worst, **told}))
    return 0


def work(config: Config, steps: int, file: Path) -> None:
    found = measure(config, steps)
    if os.environ["RANK"] == "0":
        file.write_text(json.dumps(found))


def settings(a: argparse.Namespace, name: str) -> Config:
    """The configuration of one strategy; alternating updates, which all of them can."""
    small = ["--size=48", "--recognizer.backbone=timm:test_resnet", "--generator.width=4"]
    return load(
        "celeba",
        [
            *(small if a.quick else []),
            f"--recipe={a.recipe}",
            f"--data.identities_per_batch={a.batch // 4}",
            "--training.average_half_life=0",
            "--sparring.update=alternating",
            f"--training.strategy={'deepspeed' if name.startswith('zero') else name}",
            *([f"--training.deepspeed={name}"] if name.startswith("zero") else []),
        ],
    )


def measure(config: Config, steps: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of each step after the first, and MB of state on this process."""
    with open_strategy(config) as strategy:
        torch.manual_seed(0)
        strategy.prepare(build_recipe(config, IDENTITIES))
        on_gpu = strategy.device.type == "cuda"
        seconds = []
        for number in range(steps + 1):
            batch = random_batch(config, strategy, number)
            dist.barrier()
            began = time.perf_counter()
            strategy.update([batch], 1.0)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        memory = {"state_mb": round(held(strategy) / 1e6, 1)}
        if on_gpu:
            memory["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return seconds[1:], memory


def held(strategy: Strategy) -> int:
    """Bytes of the tensors that are alive with the strategy: weights, optimizer states, flat buffers.

    Storages are counted once; batches and activations are gone by now.
    """
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


if __name__ == "__main__":
    sys.exit(main())
