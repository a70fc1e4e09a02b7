"""The cost of finding a face in a shard set, a photo in a folder, and a rejected photo in a journal.

    python benchmarks/lookup.py [--quick]

Faces are read from all over a set, as in `generate --targeted`: the first time, a shard's headers are read;
after that, their offsets are known. The ratio is the later CPU time over the first. Also measured: looking up
a block of 1,024 faces in a manifest of 10,000 shards, listing photos and digesting the list, and the size of
an alignment's journal if every second photo is rejected. --quick uses a tenth of the photos.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
from measured import conclude, timed

from sparface.faces.photos import fingerprint, list_photos
from sparface.shards import Face, ShardSet, ShardSetWriter
from sparface.shards.format import shard_file
from sparface.shards.manifest import Manifest, ShardInfo, count_identities

BAR = 0.2
SHARDS, SAMPLES, SIDE = 8, 1000, 112


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the photos")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as name:
        first, again = draw(write(Path(name) / "faces"))
        photos = list_some(Path(name) / "photos", 2_000 if quick else 20_000)
        journal = {shards: journal_of(Path(name) / str(shards), shards) for shards in (100, 200, 400)}
    found = {"first_ms": first * 1e3, "again_ms": again * 1e3, "block_of_1024_ms": block() * 1e3}
    found |= {f"journal_{shards}_kB": size / 1e3 for shards, size in journal.items()} | photos
    for what, value in found.items():
        print(f"{what:24} {value:>10,.4g}")
    return conclude("lookup", [again / first], BAR, at_most=True, **found)


def write(folder: Path) -> ShardSet:
    """Write shards of pictures of about 5 kB each."""
    random = np.random.default_rng(0)
    with ShardSetWriter(folder, name="faces", size=(SIDE, SIDE), encoding="jpg", shard_samples=SAMPLES) as w:
        for number in range(SHARDS * SAMPLES):
            image = random.integers(0, 255, (14, 14, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            w.add(Face(f"k{number}", image, f"{number // 10:05d}", f"{number}.jpg", {"score": 0.5}))
    return ShardSet.open(folder)


def draw(shard_set: ShardSet) -> tuple[float, float]:
    """Seconds per face, with one face of each shard: the first time and later."""
    places = [number * SAMPLES + SAMPLES // 2 for number in range(SHARDS)]
    list(ShardSet.open(shard_set.folder).faces_at(places))
    shard_set = ShardSet.open(shard_set.folder)
    rounds = [timed(lambda: list(shard_set.faces_at(places)), process_time) / SHARDS for _ in range(6)]
    return rounds[0], min(rounds[1:])


def block() -> float:
    """Seconds to find 1,024 consecutive faces in a manifest of 10,000 shards, without opening a shard."""
    runs = [np.array([[number, 1000]], np.int32) for number in range(10_000)]
    infos = tuple(ShardInfo(shard_file("m", n), 1000, 10**7, "0" * 64, r) for n, r in enumerate(runs))
    names = [f"p{number}" for number in range(10_000)]
    manifest = Manifest("m", (SIDE, SIDE), "png", count_identities(names, infos), infos, {}, "")
    nowhere = Nowhere(Path(), manifest, "")
    list(nowhere.faces_at(range(10)))
    return timed(lambda: list(nowhere.faces_at(range(5_000_500, 5_001_524))), process_time)


class Nowhere(ShardSet):
    """A set with empty shards, so that only the search for positions takes time."""

    def _known_shard(self, number: int):  # type: ignore[no-untyped-def]
        return open("/dev/null")

    def face(self, shard, sample, identity):  # type: ignore[no-untyped-def]
        return None


def list_some(folder: Path, count: int) -> dict[str, float]:
    """Microseconds per photo."""
    for person in range(count // 20):
        (folder / f"{person:05d}").mkdir(parents=True)
        for photo in range(20):
            (folder / f"{person:05d}" / f"{photo}.jpg").touch()
    listed = list_photos(folder)
    return {
        "list_us": timed(lambda: list_photos(folder), process_time) / count * 1e6,
        "fingerprint_us": timed(lambda: fingerprint(listed), process_time) / count * 1e6,
    }


def journal_of(folder: Path, shards: int) -> int:
    """Bytes of the journal of an alignment that rejects as many photos as it keeps, with 40 per shard."""
    image = np.zeros((16, 16, 3), np.uint8)
    writer = ShardSetWriter(folder, name="j", size=(16, 16), shard_samples=40)
    for number in range(shards * 40):
        note = (f"person-{number // 40}/{number}.jpg", "no face found")
        writer.add(Face(f"k{number}", image, f"{number // 40}", ""), number, [note])
    writer._journal.close()
    return (folder / "unfinished.jsonl").stat().st_size


if __name__ == "__main__":
    sys.exit(main())
