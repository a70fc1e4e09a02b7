"""Time and memory until the first batch: a set of 10,000 shards over the same faces in 10 shards.

    python benchmarks/startup.py [--quick]

Both sets hold the same 40,000 faces of 10,000 people, with 4 faces per shard in one set and 4,000 in the
other, so they differ only in the number of shards. A new process imports sparface, opens the set, and takes
one batch of 128 from a loader with one worker, as in training; then it reports its age and the resident
memory of both processes. Each round starts it once for each set. There are three ratios: `seconds` from the
process's start, `opening` without the imports (from opening the set to the first batch), and `memory`;
`ratio` is the worst of them. `growth` is the main process's memory in addition to its imports.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BAR = 1.2
IDENTITIES, FACES = 10_000, 4
SHARDS = (10, 10_000)
SIZE = 32


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="end within a minute")
    options.add_argument("--start", type=Path, metavar="SET", help="measure one set in this process")
    asked = options.parse_args()
    if asked.start:
        print(json.dumps(start(asked.start)))
        return 0
    from measured import conclude, over, table

    with tempfile.TemporaryDirectory() as folder:
        sets = {shards: write(Path(folder) / f"set-{shards}", shards) for shards in SHARDS}
        found: dict[int, list[dict[str, float]]] = {shards: [] for shards in SHARDS}
        for number in range((1 if asked.quick else 9) + 1):
            for shards in sorted(sets, reverse=bool(number % 2)):
                measured = started(sets[shards])
                if number:
                    found[shards].append(measured)
    ratios = {}
    for name, unit in {"seconds": "s", "opening": "s", "memory": "MB", "growth": "MB"}.items():
        few, many = ([each[name] for each in found[shards]] for shards in SHARDS)
        print(f"\n{name}")
        table({f"{SHARDS[0]:,} shards": few, f"{SHARDS[1]:,} shards": many}, unit)
        ratios[name] = over(many, few)
    worst = max((ratios[name] for name in ("seconds", "opening", "memory")), key=statistics.median)
    medians = {name: round(statistics.median(values), 3) for name, values in ratios.items()}
    return conclude("startup", worst, BAR, at_most=True, **medians, faces=IDENTITIES * FACES)


def started(folder: Path) -> dict[str, float]:
    """Seconds and MB reported by a new process."""
    began = time.time()
    command = [sys.executable, __file__, "--start", str(folder)]
    reported = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {**reported, "seconds": reported["until"] - began}


def start(folder: Path) -> dict[str, float]:
    import psutil

    from sparface.shards import FaceStream, Loader, ShardSet

    process = psutil.Process(os.getpid())
    before, began = process.memory_info().rss, time.perf_counter()
    stream = FaceStream(ShardSet.open(folder), identities_per_batch=32, images_per_identity=FACES, seed=0)
    batches = iter(Loader(stream, workers=1))
    next(batches)
    until, opening = time.time(), time.perf_counter() - began
    memory = process.memory_info().rss
    worker = sum(child.memory_info().rss for child in process.children())
    gc.freeze()  # otherwise the final collection scans everything that torch imported
    return {
        "until": until,
        "opening": opening,
        "memory": (memory + worker) / 1e6,
        "growth": (memory - before) / 1e6,
    }


def write(folder: Path, shards: int) -> Path:
    """Write a set of `shards` equal shards, without `ShardSetWriter`, which syncs the disk after each."""
    from sparface.faces.drawn import drawn_faces
    from sparface.shards.codec import encode
    from sparface.shards.format import Face, shard_file, sidecar
    from sparface.shards.manifest import MANIFEST, Manifest
    from sparface.shards.writer import OpenShard

    folder.mkdir()
    images = [encode(face.image, "jpg", 95) for face in drawn_faces(1, 16, size=SIZE, seed=0)]
    names = [f"{identity:05d}" for identity in range(IDENTITIES)]
    infos = []
    for number in range(shards):
        shard = OpenShard("jpg")
        for label in range(IDENTITIES * number // shards, IDENTITIES * (number + 1) // shards):
            for face in range(FACES):
                key = f"{label:05d}-{face}"
                info = sidecar(Face(key, None, names[label], key), label)  # type: ignore[arg-type]
                shard.add(key, images[(label + face) % len(images)], info, label)
        data, entry = shard.close(shard_file("faces", number))
        (folder / entry.file).write_bytes(data)
        infos.append(entry)
    manifest = Manifest(
        name="faces",
        size=(SIZE, SIZE),
        encoding="jpg",
        identities=dict.fromkeys(names, FACES),
        shards=tuple(infos),
        provenance={},
        licence="",
    )
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return folder


if __name__ == "__main__":
    sys.exit(main())
