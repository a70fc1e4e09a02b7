"""Does a sparring step use the machine as well as the plain recognizer's step?

    python benchmarks/step.py [--quick]

FLOP/s of a sparring step over those of a recognizer's step that embeds as many images: a sparring step of
32 faces embeds 64 (real and sparring), so the recognizer's has 64 faces. FaceNet and the generator of
`configs/celeba.yaml`, 128 pixels, fp32 and bf16, both steps in turns. The FLOPs are those of the matrix
products and convolutions of the very step that is timed, forward and backward. Operators are counted
without those that only make a view. (On a CPU without bf16 instructions convolutions compute in fp32, on
values rounded to bf16.) The last line is one JSON object; its ratio is that of the worse precision.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack
from typing import Any

import torch
from measured import conclude, in_turns, over, table
from stepping import settings, step

from sparface.training.strategies.rounding import native_bf16

BAR = 0.90
FACES = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the batch, few rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    a = parser.parse_args()
    faces, rounds = (FACES // 4, 3) if a.quick else (FACES, a.rounds)
    found = {precision: measure(precision, faces, rounds) for precision in a.precision}
    worse = min(found, key=lambda precision: statistics.median(found[precision]))
    medians = {f"ratio_{p}": round(statistics.median(ratios), 4) for p, ratios in found.items()}
    native = native_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    more = {"faces": faces, "rounds": rounds, "native_bf16": native}
    return conclude("step", found[worse], BAR, **medians, **more)


def measure(precision: str, faces: int, rounds: int) -> list[float]:
    """Round by round, FLOP/s of the sparring step over those of the plain one."""
    configs = {"plain": settings("recognizer", 2 * faces), "sparring": settings("sparring", faces)}
    with ExitStack() as stack:
        steps: dict[str, Any] = {}
        for name, config in configs.items():
            config.training.precision = precision  # type: ignore[assignment]
            config.size = 128
            steps[name] = stack.enter_context(step(config))
        seconds = in_turns(steps, rounds)
        counted = {name: one.counted() for name, one in steps.items()}
    for name, one in counted.items():
        print(f"{precision} {name}: {one.flops / 1e9:.1f} GFLOP, {one.operators} operators a step")
    rates = {name: [counted[name].flops / s for s in seconds[name]] for name in steps}
    table(seconds, "seconds")
    table({name: [rate / 1e9 for rate in values] for name, values in rates.items()}, "GFLOP/s")
    return over(rates["sparring"], rates["plain"])


if __name__ == "__main__":
    sys.exit(main())
