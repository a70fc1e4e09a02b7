"""The cost of 100,000 shards and 1,024 processes for one process, before any face is read or made.

    python benchmarks/scale.py [--quick]

It writes a made set of 100,000 shards with 1,000 faces each (100 variants of a million faces of 100,000
identities), as 1,024 processes of `sparface generate` would leave it: a record and a shard for each unit, all
real except for the shards, which are sparse files of the right size. It measures the work of one process of
`generate` (finding its part, checking what is finished, and the last process's manifest), and, in a separate
process, of one rank of 1,024 that trains on the set: opening the manifest, planning the stream, and finding
the faces of its batches, 8 groups of 4 per rank. For comparison, it measures the same rank on the 1,000
shards of the sources with 8 ranks. --quick uses 10,000 shards. The ratio is the index work of a batch over a
calculated training step (docs/lab/performance.md). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measured import conclude, memory, timed

from sparface.generate.folder import UNITS, MadeFolder
from sparface.generate.layout import Layout
from sparface.shards import FaceStream, ShardSet
from sparface.shards.format import dump_json, shard_file
from sparface.shards.manifest import MANIFEST, Manifest, ShardInfo, count_identities, shard_document
from sparface.shards.stream import _Reader

BAR = 0.05
STEP = 0.02
"""Calculated seconds of a sparring step of 32 faces on an H100."""
RANKS, GROUPS, IMAGES = 1024, 8, 4
"""Processes, groups per process in a batch, and faces per group."""
IDENTITIES, PHOTOS, SHARD = 100_000, 10, 1_000
BYTES = SHARD * 20_000
BATCHES = 500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="10,000 shards")
    parser.add_argument("--rank", nargs=2, metavar=("FOLDER", "RANKS"), help="measure one of RANKS ranks")
    a = parser.parse_args()
    if a.rank:
        print(json.dumps(train(Path(a.rank[0]), int(a.rank[1]))))
        return 0
    with tempfile.TemporaryDirectory() as name:
        sources = write_sources(Path(name) / "sources")
        made = generate(Path(name) / "made", sources, factor=10 if a.quick else 100)
        small, large = in_process(sources.folder, 8), in_process(made, RANKS)
    for what in large:
        print(f"train: {what:42} {small[what]:>10,.4g} on 8 ranks {large[what]:>10,.4g} on {RANKS}")
    return conclude("scale", [large[BATCH] / STEP], BAR, at_most=True, ranks=RANKS, **large)


def write_sources(folder: Path) -> ShardSet:
    """Write the manifest of a million faces, without shards, which are not needed here."""
    folder.mkdir()
    runs = np.stack([np.arange(IDENTITIES), np.full(IDENTITIES, PHOTOS)], axis=1).astype(np.int32)
    parts = np.split(runs, IDENTITIES * PHOTOS // SHARD)
    shards = tuple(
        ShardInfo(shard_file("sources", n), SHARD, BYTES, "0" * 64, r) for n, r in enumerate(parts)
    )
    names = [f"person-{number:06d}" for number in range(IDENTITIES)]
    manifest = Manifest("sources", (112, 112), "png", count_identities(names, shards), shards, {}, "none")
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return ShardSet.open(folder)


def generate(folder: Path, sources: ShardSet, factor: int) -> Path:
    """Write a made set as its processes would, and measure the work of one process besides making faces."""
    layout = Layout(len(sources), factor, SHARD)
    opened = MadeFolder(folder, layout, {"maker": "none"}, "png")
    part, blocks = layout.part(RANKS // 2, RANKS), sources.manifest.shards
    for unit in range(layout.units):
        pretend(opened, unit, blocks[layout.block_of(unit)].runs)
    seconds = {
        "open the folder": timed(lambda: MadeFolder(folder, layout, {"maker": "none"}, "png")),
        f"what is missing of its {len(part)} units": timed(lambda: [opened.record(u) for u in part]),
        "a look at all that is finished": timed(opened.finished),
    }
    unit = layout.units - 1
    record = folder / UNITS / f"{unit:06d}.json"
    kept = record.read_bytes()
    record.unlink()
    seconds["its end, while others are at work"] = timed(lambda: opened.finish(sources))
    record.write_bytes(kept)
    seconds["the last one's end: records and manifest"] = timed(lambda: opened.finish(sources))
    for what, value in seconds.items():
        print(f"generate: {what:42} {value:>10,.4g} s")
    print(f"generate: {'manifest':42} {(folder / MANIFEST).stat().st_size / 1e6:>10,.4g} MB")
    return folder


def pretend(opened: MadeFolder, unit: int, runs: np.ndarray) -> None:
    """Write a unit's record, and a sparse file in place of its shard."""
    shard = ShardInfo(opened.shard_file(unit), SHARD, BYTES, "0" * 64, runs)
    document = {"settings": opened._digest, "shard": shard_document(shard), "counts": {"made": SHARD}}
    (opened.folder / UNITS / f"{unit:06d}.json").write_bytes(dump_json(document))
    with (opened.folder / shard.file).open("wb") as file:
        os.truncate(file.fileno(), BYTES)


def in_process(folder: Path, ranks: int) -> dict[str, float]:
    """Run `train` in a separate process."""
    command = [sys.executable, __file__, "--rank", str(folder), str(ranks)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


BATCH = "index of a batch, s"


def train(folder: Path, ranks: int) -> dict[str, float]:
    """Seconds and bytes of one rank in the middle of `ranks`."""
    found: dict[str, float] = {"before, MB": memory("VmRSS") / 1e6}
    kept: dict[str, Any] = {}

    def opening() -> None:
        kept["set"] = ShardSet.open(folder)

    def planning() -> None:
        kept["stream"] = FaceStream(
            kept["set"],
            identities_per_batch=GROUPS * ranks,
            images_per_identity=IMAGES,
            seed=0,
            lanes=0,
            rank=ranks // 2,
            world_size=ranks,
        )

    found["open the manifest, s"] = timed(opening)
    found["plan the stream, s"] = timed(planning)
    stream = kept["stream"]
    reader = _Reader(stream, stream._orders)

    def locate(batches: range) -> None:
        for batch in batches:
            for place in range(GROUPS):
                reader._group(batch, stream.rank * GROUPS + place)

    per_lane = stream.identities_per_batch // stream.lanes
    lanes = {(stream.rank * GROUPS + place) // per_lane for place in range(GROUPS)}
    found["shards of an epoch"] = sum(len(stream._orders[lane]._shards) for lane in lanes)
    found["index of the first batch, s"] = timed(lambda: locate(range(1)))
    found[BATCH] = timed(lambda: locate(range(1, 1 + BATCHES))) / BATCHES
    found["peak, MB"], found["after, MB"] = memory("VmHWM") / 1e6, memory("VmRSS") / 1e6
    return found


if __name__ == "__main__":
    sys.exit(main())
