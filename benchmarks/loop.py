"""The overhead of the training loop: everything that is not the training step.

    python benchmarks/loop.py [--quick]

Images per second of the whole loop (stream with a decoding process, metrics, log lines, MLflow, the watch, a
checkpoint every 200 steps) over those of the bare step on a fixed batch. The same trainer runs both in turns,
20 steps at a time. A round is 200 steps of each with one checkpoint, whose completion is included in the
loop's time. It uses the recognizer recipe of `configs/celeba.yaml`: FaceNet at 112 pixels, batch 8, a log
line every 20 steps, no previews and no validation, on drawn faces. With --quick a turn has 8 steps, and 2
turns represent the 24 without a checkpoint. (A sparring step does more work for the same faces, so its
overhead would be smaller.) The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measured import conclude, over, table
from stepping import finish_device_work, random_batch, settings, trainer

from sparface.machine import usable_cores
from sparface.shards import Batch
from sparface.training.loop import Trainer

BAR = 0.97
CHECKPOINT, LOG = 200, 20
"""Steps between checkpoints, and between log lines."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short turns, one round")
    parser.add_argument("--faces", type=int, default=8, help="batch")
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    steps, turns, rounds = (8, 3, 1) if a.quick else (LOG, CHECKPOINT // LOG, a.rounds)
    config = settings("recognizer", a.faces, "--size=112")
    config.training.checkpoint_every = turns * steps * a.faces
    config.training.log_every = LOG * a.faces
    config.training.preview_every = config.schedule.images = 10**9
    with tempfile.TemporaryDirectory() as folder, trainer(Path(folder), config) as run:
        seconds = measure(run, a.faces, steps, turns, rounds)
    rates = {name: [CHECKPOINT * a.faces / s for s in values] for name, values in seconds.items()}
    table(rates, "images/s")
    return conclude("loop", over(rates["loop"], rates["bare"]), BAR, faces=a.faces, cores=usable_cores())


def measure(run: Trainer, faces: int, steps: int, turns: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of 200 steps for each round, computed from its turns, the last of which writes a checkpoint."""
    fixed = random_batch(run.config, run.strategy, 0)
    # a checkpoint falls in the middle of a turn, so training continues concurrently
    run.images_seen = (turns * steps - steps // 2) * faces
    batches = run.batches()
    in_loop(run, batches, steps * faces)  # warms up, and writes a checkpoint
    while run.config.tracking.enabled and run.tracker.run_id is None:
        time.sleep(0.1)  # MLflow creates its database
    seconds: dict[str, list[float]] = {"loop": [], "bare": []}
    for _ in range(rounds):
        loop, bare = [], []
        for _ in range(turns):
            loop.append(in_loop(run, batches, steps * faces))
            bare.append(alone(run, fixed, steps))
        share = CHECKPOINT // steps
        seconds["loop"].append(statistics.mean(loop[:-1]) * (share - 1) + loop[-1])
        seconds["bare"].append(statistics.mean(bare) * share)
    batches.close()
    return seconds


def in_loop(run: Trainer, batches: Iterator[Batch], images: int) -> float:
    """Seconds of the loop for `images` images, including the completion of a checkpoint that it started."""
    run.total = run.images_seen + images
    began = time.perf_counter()
    run.steps(batches)
    run.store.finish()
    finish_device_work()
    return time.perf_counter() - began


def alone(run: Trainer, fixed: Batch, steps: int) -> float:
    """Seconds of `steps` bare steps."""
    began = time.perf_counter()
    for _ in range(steps):
        run.strategy.update([fixed], 1.0)
    finish_device_work()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
