"""What adversarial training costs: stored, on the fly and free examples, against plain training.

    python benchmarks/adversarial.py [--backbone NAME] [--quick]

Each kind trains the recipe `expression` with the settings of `configs/expression.yaml` on drawn faces of 75
pixels, from the shards to the update, in a process of its own; the processes take turns of 20 steps. The set
of `stored` is made by `sparface attack` (FGSM) of a checkpoint of the plain training, and half of each batch
comes from it. `free` uses each batch 4 times, so an update of it costs a quarter.

The ratio is the seconds that `stored` takes for an image over those of `plain`. The table also has peak
memory, and the bytes that are stored besides the faces. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from measured import conclude, in_turns, memory, over, table
from stepping import finish_device_work, opened

from sparface import cli
from sparface.config import Config
from sparface.faces.drawn.set import drawn_faces
from sparface.settings import load
from sparface.shards import Batch, Face, ShardSet, ShardSetWriter
from sparface.training.loop import Trainer, train

BAR = 1.1
BATCH, CLASSES = 32, 7
KINDS = {"plain": "none", "stored": "stored", "on the fly": "on_the_fly", "free": "free"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", default="mobilenetv2_100", help="network of timm")
    parser.add_argument("--quick", action="store_true", help="short turns, few rounds")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=9)
    a = parser.parse_args()
    steps, rounds = (3, 2) if a.quick else (a.steps, a.rounds)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        prepare(folder, a.backbone)
        runs = {kind: stack.enter_context(training(folder, kind, a.backbone)) for kind in KINDS}
        seconds = in_turns({kind: partial(ask, run, steps) for kind, run in runs.items()}, rounds)
        peaks = {kind: ask(connection, 0) for kind, connection in runs.items()}
        extra = ShardSet.open(folder / "made").manifest
    table({kind: [1000 * s / (steps * BATCH) for s in of] for kind, of in seconds.items()}, "ms/image")
    stored = sum(shard.bytes for shard in extra.shards)
    for kind, peak in peaks.items():
        more = f", {stored / 1e6:.1f} MB stored for {extra.samples:,} faces" if kind == "stored" else ""
        print(f"{kind:<12}{peak / 1e6:>8,.0f} MB peak memory{more}")
    ratios = {kind: over(of, seconds["plain"]) for kind, of in seconds.items()}
    medians = {kind.replace(" ", "_"): round(statistics.median(of), 3) for kind, of in ratios.items()}
    return conclude(
        "adversarial", ratios["stored"], BAR, at_most=True, backbone=a.backbone, over_plain=medians
    )


def prepare(folder: Path, backbone: str) -> None:
    """Write the faces, a run of one step, and its adversarial examples."""
    with ShardSetWriter(folder / "faces", name="faces", size=(75, 75), columns=["expression"]) as writer:
        for number, face in enumerate(drawn_faces(32, 12, size=75, seed=0)):
            meta = {"expression": f"class {number % CLASSES}"}
            writer.add(Face(face.key, face.image, face.identity, face.source, meta))
    config = settings(folder, "plain", backbone)
    config.schedule.images = BATCH
    (folder / "first").mkdir()
    train(config, folder / "first")
    command = f"attack --checkpoint {folder}/first --shards {folder}/faces --attack fgsm --epsilon 0.01"
    if cli.main([*command.split(), "--out", f"{folder}/made"]):
        sys.exit("the set of adversarial examples was not made")


def settings(folder: Path, kind: str, backbone: str) -> Config:
    options = {
        "classifier.backbone": backbone,
        "adversarial.training": KINDS[kind],
        "data.shards": folder / "faces",
        "data.mix": {f"{folder}/made": BATCH // 2} if kind == "stored" else {},
        "validation.shards": "",
        "tracking.enabled": "false",
    }
    config = load("expression", [f"--{key}={value}" for key, value in options.items()])
    assert config.data.identities_per_batch == BATCH
    config.training.log_every = config.training.preview_every = config.training.checkpoint_every = 10**9
    config.schedule.images = 10**9
    return config


@contextmanager
def training(folder: Path, kind: str, backbone: str) -> Iterator[Connection]:
    """Start the process of one kind, which makes as many steps as it is asked for."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(theirs, folder, kind, backbone))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def serve(connection: Connection, folder: Path, kind: str, backbone: str) -> None:
    """Make as many steps as asked for and answer; asked for 0, answer with the peak of memory in bytes."""
    config = settings(folder, kind, backbone)
    with opened(folder / kind.replace(" ", "-"), config) as run:
        batches = run.batches()
        while True:
            try:
                steps = connection.recv()
            except EOFError:
                return
            connection.send(make_steps(run, batches, steps) if steps else peak())


def make_steps(run: Trainer, batches: Iterator[Batch], steps: int) -> float:
    run.total = run.images_seen + steps * BATCH
    run.steps(batches)
    finish_device_work()
    return 0.0


def peak() -> float:
    return float(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory("VmHWM"))


def ask(connection: Connection, steps: int) -> float:
    connection.send(steps)
    return float(connection.recv())


if __name__ == "__main__":
    sys.exit(main())
