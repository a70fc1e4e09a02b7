"""How long training waits for a checkpoint.

    python benchmarks/checkpoint.py [--quick]

The ratio is the time that training waits for a checkpoint (the call that starts it, and the wait until the
copy is complete, before weights change) over a median step. This is the whole cost if the steps run on a GPU.
On a CPU, copying, writing and hashing also take cores from concurrent steps: `extra` is how much longer all
steps until the checkpoint's end took than as many other steps, in steps, and `amortised` is `extra` divided
by 200 steps. It uses the sparring recipe of `configs/celeba.yaml`: FaceNet at 128 pixels, batch 32, 290 MB
per checkpoint; batch 8 with --quick. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from measured import conclude, table
from stepping import finish_device_work, random_batch, settings, trainer

from sparface.shards import Batch
from sparface.training.loop import Trainer

BAR = 0.02
EVERY = 200
"""Steps between checkpoints."""


@dataclass
class Found:
    """Seconds of steps without a checkpoint; and for each checkpoint, seconds of the call and of the wait for
    its copy, total seconds of the steps concurrent with it, and their number."""

    steps: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    wait: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    count: list[int] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller batch, few rounds")
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    faces, rounds = (8, 3) if a.quick else (32, a.rounds)
    config = settings("sparring", faces, "--size=128", "--tracking.enabled=false")
    with tempfile.TemporaryDirectory() as folder, trainer(Path(folder), config) as run:
        found = measure(run, random_batch(config, run.strategy, 0), rounds)
    step = statistics.median(found.steps)
    table({"step": found.steps, "call": found.call, "wait for the copy": found.wait}, "seconds")
    stall = [(call + wait) / step for call, wait in zip(found.call, found.wait, strict=True)]
    extra = [
        (call + beside) / step - count
        for call, beside, count in zip(found.call, found.beside, found.count, strict=True)
    ]
    table({"stall": stall, "extra": extra, "concurrent steps": found.count}, "steps")
    more = statistics.median(extra)
    return conclude(
        "checkpoint",
        stall,
        BAR,
        at_most=True,
        extra=round(more, 4),
        amortised=round(more / EVERY, 5),
        faces=faces,
    )


def measure(run: Trainer, batch: Batch, rounds: int) -> Found:
    found = Found()
    for number in range(rounds + 1):
        steps = [step(run, batch)[0] for _ in range(3)]
        began = time.perf_counter()
        run.checkpoint()
        call = time.perf_counter() - began
        seconds, wait = step(run, batch)
        beside = [seconds]
        while any(thread.name == "checkpoint" for thread in threading.enumerate()):
            beside.append(step(run, batch)[0])
        if number:  # the first one allocates memory
            found.steps += steps
            found.call.append(call)
            found.wait.append(wait)
            found.beside.append(sum(beside))
            found.count.append(len(beside))
    return found


def step(run: Trainer, batch: Batch) -> tuple[float, float]:
    """Seconds of a step, and how many of them it waited for a checkpoint's copy."""
    waited = 0.0

    def copied() -> None:
        nonlocal waited
        began = time.perf_counter()
        run.store.copied()
        waited += time.perf_counter() - began

    began = time.perf_counter()
    run.strategy.update([batch], 1.0, before_change=copied)
    finish_device_work()
    run.images_seen += len(batch)
    return time.perf_counter() - began, waited


if __name__ == "__main__":
    sys.exit(main())
