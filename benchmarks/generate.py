"""Generation from tar to tar, over the bare generator's forward on the same batches.

    python benchmarks/generate.py [--quick] [--encoding jpg]

Each round makes a few shards and then runs the bare work. `sparface generate` runs the generator's encoder
once for all variants of a face, which a plain loop over its forward does not; so the rate is also given over
the decoders alone, the minimum that any generation must compute. It uses drawn faces of 112 pixels and an
untrained network of the default size, since training does not affect the rate. Each stage is also timed
alone, to show the bottleneck. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measured import conclude, over, table

from sparface.config import ENCODINGS
from sparface.faces import draw_set
from sparface.generate.folder import MadeFolder, Record
from sparface.generate.layout import Layout
from sparface.generate.make import Pipeline
from sparface.generate.makers import PerturbationMaker
from sparface.generate.run import _workers as default_workers
from sparface.generate.settings import GenerateConfig
from sparface.generate.variants import Block, Variant
from sparface.machine import keep_freed_memory
from sparface.models.sae import GeneratorConfig, build_generator
from sparface.shards import ShardSet
from sparface.shards.codec import encode
from sparface.training.stop import StopRequest

BAR = 0.85
SIZE, IDENTITIES, PHOTOS = 112, 16, 8
UNITS = 4
"""Shards of 256 per round: at its end the pipeline runs empty, which does not happen in a long run."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="end within a minute")
    options.add_argument("--encoding", default="png", choices=ENCODINGS)
    options.add_argument("--workers", type=int, default=default_workers(0), help="encoding threads")
    asked = options.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), asked.encoding, asked.workers, rounds=1 if asked.quick else 15)


def measure(folder: Path, encoding: str, workers: int, rounds: int) -> int:
    draw_set(folder / "sources", IDENTITIES, PHOTOS, size=SIZE, seed=0)
    sources = ShardSet.open(folder / "sources")
    settings = GenerateConfig(
        factor=UNITS * 2 * (rounds + 1),
        shard_samples=256,
        encoding=encoding,  # type: ignore[arg-type]
    ).resolved(0.1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = build_generator(GeneratorConfig(noise=1.0)).eval().requires_grad_(False)
    generator = generator.to(device).to(memory_format=torch.channels_last)
    maker = PerturbationMaker(settings, sources, generator, None, device)
    layout = Layout(len(sources), settings.factor, settings.shard_samples)
    made = MadeFolder(folder / "made", layout, {"maker": "none"}, settings.encoding)
    faces = list(sources.faces())
    block = maker.block(range(len(faces)), faces, None)
    rates: dict[str, list[float]] = {"tar to tar": [], "whole forward": [], "decoders alone": []}
    with Pipeline(maker, None, made, workers=workers, stop=StopRequest()) as pipeline:
        for number in range(rounds + 1):
            units = range(UNITS * number, UNITS * (number + 1))
            count = sum(map(layout.samples, units))
            made_units = pipeline.run(units, made.store)
            rates["tar to tar"].append(rate(count, partial(list[object], made_units)))
            rates["whole forward"].append(rate(count // 4, partial(forward, maker, block, count // 4)))
            rates["decoders alone"].append(rate(count, partial(decode, maker, block, count)))
    rates = {name: found[1:] for name, found in rates.items()}  # the first warms up
    table(rates, "faces/s")
    stages(maker, block, made)
    decoders = over(rates["tar to tar"], rates["decoders alone"])
    return conclude(
        "generate",
        over(rates["tar to tar"], rates["whole forward"]),
        BAR,
        over_decoders_alone=round(statistics.median(decoders), 3),
        encoding=encoding,
        device=device.type,
        torch_threads=torch.get_num_threads(),
        workers=workers,
        rounds=rounds,
    )


def rate(count: int, work: Callable[[], object]) -> float:
    """Faces per second."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count / (time.perf_counter() - started)


@torch.no_grad()
def decode(maker: PerturbationMaker, block: Block, count: int) -> None:
    """Run the decoders on `count` variants, from existing codes."""
    assert block.codes is not None
    size = maker.settings.batch_size
    for first in range(0, count, size):
        rows = torch.arange(first, first + size, device=maker.device) % len(block.faces)
        maker.generator.decode(block.codes[rows], SIZE, SIZE)


def stages(maker: PerturbationMaker, block: Block, made: MadeFolder) -> None:
    """Print the rate of each stage alone, in this thread."""
    size, settings = maker.settings.batch_size, maker.settings
    drawn = [Variant(row % len(block.faces), 1) for row in range(size)]
    images = maker.make(block, drawn).images.cpu().numpy()
    files = [encode(image, settings.encoding, settings.quality) for image in images]
    record = made.record(0)
    assert record is not None
    tar = (made.folder / record.shard.file).read_bytes()
    times: dict[str, Callable[[], object]] = {
        "encoder of the generator": lambda: maker.block(range(size), block.faces[:size], None),
        "decoders of the generator": lambda: decode(maker, block, size),
        "whole variant": lambda: maker.make(block, drawn),
        f"{settings.encoding} encoding": lambda: [
            encode(image, settings.encoding, settings.quality) for image in images
        ],
    }
    rates = {name: statistics.median(rate(size, work) for _ in range(5)) for name, work in times.items()}
    for name, found in rates.items():
        print(f"{name:>28} {found:>8,.0f} faces/s")
    store = rate(record.shard.samples, lambda: made.store(0, tar, Record(record.shard, record.counts)))
    print(f"{'write, sync and rename':>28} {store:>8,.0f} faces/s")
    print(f"{'size of a sample':>28} {sum(map(len, files)) / size:>8,.0f} bytes")


@torch.no_grad()
def forward(maker: PerturbationMaker, block: Block, count: int) -> None:
    """Run the encoder and decoders on `count` faces."""
    size = maker.settings.batch_size
    for first in range(0, count, size):
        rows = torch.arange(first, first + size, device=maker.device) % len(block.faces)
        maker.generator(block.x[rows])


if __name__ == "__main__":
    sys.exit(main())
