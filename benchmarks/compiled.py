"""What does `training.compile` gain?

    python benchmarks/compiled.py [--quick]

Images a second of a compiled sparring step over those of an eager one, 32 faces, in turns: FaceNet and the
generator of `configs/celeba.yaml` at 128 pixels; --quick takes the small network of `stepping.py`. What
compiling takes is the first step's seconds, and not in the ratio. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack

from measured import conclude, in_turns, over, table
from stepping import SMALL, settings, step

BAR = 1.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small network, few rounds")
    parser.add_argument("--faces", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    rounds = 3 if a.quick else a.rounds
    network = SMALL if a.quick else ("--size=128",)
    with ExitStack() as stack:
        steps, first = {}, {}
        for name, compiled in (("eager", "false"), ("compiled", "true")):
            config = settings("sparring", a.faces, f"--training.compile={compiled}", *network)
            steps[name] = stack.enter_context(step(config))
            began = time.perf_counter()
            steps[name]()
            first[name] = time.perf_counter() - began
        print(", ".join(f"{name}: first step {seconds:.1f} s" for name, seconds in first.items()), flush=True)
        seconds = in_turns(steps, rounds)  # type: ignore[arg-type]
    table({name: [a.faces / s for s in values] for name, values in seconds.items()}, "images/s")
    more = {"faces": a.faces, "rounds": rounds, "first_step_seconds": round(first["compiled"], 1)}
    return conclude("compiled", over(seconds["eager"], seconds["compiled"]), BAR, **more)


if __name__ == "__main__":
    sys.exit(main())
