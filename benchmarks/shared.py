"""What does one recognizer forward for both networks save?

    python benchmarks/shared.py [--quick]

Images a second of `sparring.update: shared` over those of `alternating`, with the zero-sum
attack; both give the same gradients. FaceNet and the generator of `configs/celeba.yaml` at 128 pixels,
batch 32, fp32, in turns. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from measured import conclude, in_turns, over, table
from stepping import settings, step

BAR = 1.3
FACES = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="half the batch, few rounds")
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    faces, rounds = (FACES // 2, 3) if a.quick else (FACES, a.rounds)
    with ExitStack() as stack:
        steps = {}
        for update in ("alternating", "shared"):
            overrides = ("--size=128", "--sparring.attack=zero_sum", f"--sparring.update={update}")
            steps[update] = stack.enter_context(step(settings("sparring", faces, *overrides)))
        seconds = in_turns(steps, rounds)  # type: ignore[arg-type]
    table({name: [faces / s for s in values] for name, values in seconds.items()}, "images/s")
    return conclude(
        "shared", over(seconds["alternating"], seconds["shared"]), BAR, faces=faces, rounds=rounds
    )


if __name__ == "__main__":
    sys.exit(main())
