"""How much faster are two processes than one?

    python benchmarks/ddp.py [--quick]

Images a second of DDP on 2 processes of 1 thread each, over those of 1 process of 1 thread, each process
with 16 faces of 128 pixels. Sparring step of `configs/celeba.yaml`: FaceNet, its statistics synced. What
the machine itself allows stands beside it: both processes at work without a word to each other. All three
run in turns. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from measured import conclude, in_turns, over, table
from stepping import Step, in_a_pair, settings
from torch import distributed as dist

from sparface.training.strategies import open_strategy
from sparface.training.strategies.base import Strategy

BAR = 1.8
FACES = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="half the batch, few rounds")
    parser.add_argument("--batchnorm", choices=["synced", "local"], default="synced")
    parser.add_argument("--recipe", choices=["sparring", "recognizer"], default="sparring")
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    a.faces, a.rounds = (FACES // 2, 2) if a.quick else (FACES, a.rounds)
    seconds = in_a_pair(work, a)
    images = {"1 process": a.faces, "2 without DDP": 2 * a.faces, "DDP": 2 * a.faces}
    table({name: [images[name] / s for s in values] for name, values in seconds.items()}, "images/s")
    ratios = {name: [2 * r for r in over(seconds["1 process"], seconds[name])] for name in images}
    ceiling = round(statistics.median(ratios["2 without DDP"]), 4)
    return conclude("ddp", ratios["DDP"], BAR, ceiling=ceiling, batchnorm=a.batchnorm, faces=a.faces)


def work(a: argparse.Namespace, file: Path) -> None:
    common = ("--size=128", "--training.threads=1", f"--training.batchnorm={a.batchnorm}")
    whole, half = (settings(a.recipe, faces, *common) for faces in (2 * a.faces, a.faces))
    with open_strategy(whole) as strategy:
        together, alone = Step(whole, strategy), Step(half, Strategy(half, strategy.device))
        candidates = {
            "1 process": meet(alone if strategy.rank == 0 else None),
            "2 without DDP": meet(alone),
            "DDP": meet(together),
        }
        seconds = in_turns(candidates, a.rounds)
    if strategy.rank == 0:
        file.write_text(json.dumps(seconds))


def meet(step: Step | None) -> Callable[[], None]:
    """The step, if any, between two meetings of the processes."""

    def run() -> None:
        dist.barrier()
        if step:
            step()
        dist.barrier()

    return run


if __name__ == "__main__":
    sys.exit(main())
