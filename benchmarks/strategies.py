"""The speed-up of two processes on one machine, and the cost of sharding.

    python benchmarks/strategies.py ddp [--quick]
    python benchmarks/strategies.py all [--quick]

`ddp`: images per second of DDP on 2 processes with 1 thread each, over those of 1 process with 1 thread, with
16 faces of 128 pixels per process. `ceiling` is what the machine allows: the speed-up of two processes that
do not communicate. All three run in turns.

`all`: step time and memory of every strategy, compared with DDP, with 8 faces of 112 pixels per process (a
small network with --quick). All strategies run in turns in every round, each time in a new pair of processes,
so they don't share memory. Memory is what a process holds of weights, gradients and optimizer states after a
step; on a GPU also the peak of a step.

Sparring with FaceNet, with synced BatchNorm. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measured import conclude, in_turns, over, table
from stepping import Step, finish_device_work, in_a_pair, settings
from torch import distributed as dist

from sparface.config import Config
from sparface.training.strategies import open_strategy
from sparface.training.strategies.base import Strategy

BAR = 1.8
STRATEGIES = ["ddp", "fsdp", "zero0", "zero1", "zero2", "zero3"]
TINY = ("--size=48", "--recognizer.backbone=timm:test_resnet", "--generator.width=4")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("compared", choices=["ddp", "all"])
    parser.add_argument("--recipe", choices=["recognizer", "sparring"], default="sparring")
    parser.add_argument("--batchnorm", choices=["synced", "ghost", "local"], default="synced")
    parser.add_argument("--faces", type=int, help="per process; default: ddp 16, all 8")
    parser.add_argument("--rounds", type=int, help="default: ddp 7, all 3")
    parser.add_argument("--quick", action="store_true", help="half the faces or a small network, few rounds")
    a = parser.parse_args()
    return two_over_one(a) if a.compared == "ddp" else every_strategy(a)


# -- DDP compared with one process -------------------------------------------------------------------


def two_over_one(a: argparse.Namespace) -> int:
    faces, rounds = (8, 2) if a.quick else (a.faces or 16, a.rounds or 7)
    common = (
        *("--size=128", "--training.threads=1", f"--training.batchnorm={a.batchnorm}"),
        f"--training.batchnorm_group={min(faces, 16)}",
    )
    whole, half = (settings(a.recipe, count, *common) for count in (2 * faces, faces))
    seconds = in_a_pair(steps_in_turns, whole, half, rounds)
    images = {"1 process": faces, "2 without DDP": 2 * faces, "DDP": 2 * faces}
    table({name: [images[name] / s for s in values] for name, values in seconds.items()}, "images/s")
    ratios = {name: [2 * r for r in over(seconds["1 process"], seconds[name])] for name in images}
    ceiling = round(statistics.median(ratios["2 without DDP"]), 4)
    return conclude("ddp", ratios["DDP"], BAR, ceiling=ceiling, batchnorm=a.batchnorm, faces=faces)


def steps_in_turns(whole: Config, half: Config, rounds: int, file: Path) -> None:
    with open_strategy(whole) as strategy:
        together, alone = Step(whole, strategy), Step(half, Strategy(half, strategy.device))
        candidates = {
            "1 process": between_barriers(alone if strategy.rank == 0 else None),
            "2 without DDP": between_barriers(alone),
            "DDP": between_barriers(together),
        }
        seconds = in_turns(candidates, rounds)
    if strategy.rank == 0:
        file.write_text(json.dumps(seconds))


def between_barriers(step: Step | None) -> Callable[[], None]:
    """Run the step, if any, between two barriers of the processes."""

    def run() -> None:
        dist.barrier()
        if step:
            step()
        dist.barrier()

    return run


# -- every strategy compared with DDP ----------------------------------------------------------------


def every_strategy(a: argparse.Namespace) -> int:
    faces = a.faces or 8
    seconds: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    memory = {}
    for number in range(1 if a.quick else a.rounds or 3):
        for name in reversed(STRATEGIES) if number % 2 else STRATEGIES:
            config = settings(a.recipe, 2 * faces, *chosen(name, a))
            times, memory[name] = in_a_pair(time_and_memory, config)
            seconds[name] += times
    base = statistics.median(seconds["ddp"])
    ratios = {name: round(statistics.median(times) / base, 3) for name, times in seconds.items()}
    table(seconds, "seconds per step")
    for name, held in memory.items():
        print(f"{name}: {ratios[name]:.2f} of DDP's time, " + ", ".join(f"{k} {v}" for k, v in held.items()))
    settings_used = {"recipe": a.recipe, "faces": faces, "network": "small" if a.quick else "FaceNet at 112"}
    print(json.dumps({"name": "strategies", "ratios": ratios, "memory": memory, **settings_used}))
    return 0


def chosen(strategy: str, a: argparse.Namespace) -> list[str]:
    """Overrides for one strategy, with alternating updates, which all of them support."""
    return [
        *(TINY if a.quick else []),
        "--sparring.update=alternating",
        f"--training.batchnorm={a.batchnorm}",
        f"--training.strategy={'deepspeed' if strategy.startswith('zero') else strategy}",
        *([f"--training.deepspeed={strategy}"] if strategy.startswith("zero") else []),
    ]


def time_and_memory(config: Config, file: Path) -> None:
    """Seconds of each step after the first, and MB of state on rank 0."""
    with open_strategy(config) as strategy:
        step, seconds = Step(config, strategy), []
        for _ in range(4):
            dist.barrier()
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        memory = {"state_mb": round(held() / 1e6, 1)}
        if strategy.device.type == "cuda":
            memory["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    if strategy.rank == 0:
        file.write_text(json.dumps([seconds[1:], memory]))


def held() -> int:
    """Bytes of the tensors that the strategy keeps alive: weights, optimizer states, flat buffers.

    Storages are counted once, including one batch; activations are freed by now.
    """
    finish_device_work()
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


if __name__ == "__main__":
    sys.exit(main())
