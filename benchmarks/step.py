"""The speed of a sparring step, compared with other steps.

    python benchmarks/step.py recipes|updates|compile|batchnorm [--quick]

`recipes`: FLOP/s of a sparring step over those of the plain recognizer's step, in fp32 and bf16. The sparring
step of 32 faces embeds 64 (real and sparring), so the recognizer's has 64 faces. The FLOPs are those of the
matrix products and convolutions of the timed step, forward and backward. Operators that only make a view are
not counted. (On a CPU without bf16 instructions, convolutions compute in fp32 on values rounded to bf16.) The
ratio is that of the worse precision.

`updates`: what one recognizer forward for both networks saves. Images per second of `sparring.update: shared`
over `alternating`, with the zero-sum attack; both give the same gradients.

`compile`: images per second of a compiled step over those of an eager one. The compile time is reported as
the first step's seconds and not included in the ratio. --quick uses the small network of `stepping.py`.

`batchnorm`: images per second of a step with BatchNorm over groups of 16 faces over one with BatchNorm over
the whole batch, on one process.

FaceNet and the generator of `configs/celeba.yaml`, 128 pixels; the compared steps run in turns. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from typing import Any

import torch
from measured import conclude, in_turns, over, table
from stepping import SMALL, Step, settings, step

from sparface.config import Config
from sparface.training.strategies.rounding import native_bf16

BARS = {"recipes": 0.9, "updates": 1.3, "compile": 1.2, "batchnorm": 0.95}
FULL = "--size=128"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("compared", choices=list(BARS))
    parser.add_argument("--quick", action="store_true", help="fewer faces or a smaller network, few rounds")
    parser.add_argument("--faces", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    rounds = 3 if a.quick else a.rounds
    work = {"recipes": recipes, "updates": updates, "compile": compiled, "batchnorm": groups}[a.compared]
    return work(a.faces, rounds, a.quick)


def opened(stack: ExitStack, configs: dict[str, Config]) -> dict[str, Step]:
    return {name: stack.enter_context(step(config)) for name, config in configs.items()}


def recipes(faces: int, rounds: int, quick: bool) -> int:
    faces //= 4 if quick else 1
    found = {precision: rates(precision, faces, rounds) for precision in ("fp32", "bf16")}
    worse = min(found, key=lambda precision: statistics.median(found[precision]))
    medians: dict[str, Any] = {
        f"ratio_{p}": round(statistics.median(ratios), 4) for p, ratios in found.items()
    }
    native = native_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    more: dict[str, Any] = {"faces": faces, "rounds": rounds, "native_bf16": native}
    return conclude("step recipes", found[worse], BARS["recipes"], **medians | more)


def rates(precision: str, faces: int, rounds: int) -> list[float]:
    """FLOP/s of the sparring step over those of the plain one, round by round."""
    common = (FULL, f"--training.precision={precision}")
    configs = {
        "plain": settings("recognizer", 2 * faces, *common),
        "sparring": settings("sparring", faces, *common),
    }
    with ExitStack() as stack:
        steps = opened(stack, configs)
        seconds = in_turns(steps, rounds)
        counted = {name: one.counted() for name, one in steps.items()}
    for name, one in counted.items():
        print(f"{precision} {name}: {one.flops / 1e9:.1f} GFLOP, {one.operators} operators a step")
    found = {name: [counted[name].flops / s for s in seconds[name]] for name in steps}
    table(seconds, "seconds")
    table({name: [rate / 1e9 for rate in values] for name, values in found.items()}, "GFLOP/s")
    return over(found["sparring"], found["plain"])


def updates(faces: int, rounds: int, quick: bool) -> int:
    faces //= 2 if quick else 1
    common = (FULL, "--sparring.attack=zero_sum")
    with ExitStack() as stack:
        kinds = ("alternating", "shared")
        configs = {k: settings("sparring", faces, *common, f"--sparring.update={k}") for k in kinds}
        seconds = in_turns(opened(stack, configs), rounds)
    table({name: [faces / s for s in values] for name, values in seconds.items()}, "images/s")
    ratios = over(seconds["alternating"], seconds["shared"])
    return conclude("step updates", ratios, BARS["updates"], faces=faces, rounds=rounds)


def compiled(faces: int, rounds: int, quick: bool) -> int:
    network, first = SMALL if quick else (FULL,), {}
    chosen = {"eager": "false", "compiled": "true"}
    configs = {k: settings("sparring", faces, f"--training.compile={v}", *network) for k, v in chosen.items()}
    with ExitStack() as stack:
        steps = opened(stack, configs)
        for name, one in steps.items():
            began = time.perf_counter()
            one()
            first[name] = time.perf_counter() - began
        print(", ".join(f"{name}: first step {seconds:.1f} s" for name, seconds in first.items()), flush=True)
        seconds = in_turns(steps, rounds)
    table({name: [faces / s for s in values] for name, values in seconds.items()}, "images/s")
    more: dict[str, Any] = {
        "faces": faces,
        "rounds": rounds,
        "first_step_seconds": round(first["compiled"], 1),
    }
    return conclude("step compile", over(seconds["eager"], seconds["compiled"]), BARS["compile"], **more)


def groups(faces: int, rounds: int, quick: bool) -> int:
    network = SMALL if quick else (FULL,)
    with ExitStack() as stack:
        kinds = ("synced", "ghost")
        configs = {k: settings("sparring", faces, f"--training.batchnorm={k}", *network) for k in kinds}
        seconds = in_turns(opened(stack, configs), rounds)
    table({name: [faces / s for s in values] for name, values in seconds.items()}, "images/s")
    ratios = over(seconds["synced"], seconds["ghost"])
    return conclude("step batchnorm", ratios, BARS["batchnorm"], faces=faces, rounds=rounds)


if __name__ == "__main__":
    sys.exit(main())
