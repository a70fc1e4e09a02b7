"""Alignment of photos on all cores, over facenet-pytorch's own loop with as many threads.

    python benchmarks/align.py --photos FOLDER [--quick]

FOLDER has a folder of photos per person; drawn faces do not work, because MTCNN does not detect them. The
sparface side does what `sparface align` does for a photo: open it, detect faces and landmarks, choose one
face, and warp it to the template. The other side is the loop of facenet-pytorch's README: `Image.open`, then
`MTCNN()` on one image, which detects the faces and crops one. The rates are photos per second after start-up,
and `ratio_of_rates` compares them. The ratio is that of the times for 10,000 photos at these rates, including
the start of sparface's processes (`start`), as if facenet-pytorch had none. All faces of all photos are
compared as well: `same` is the share of faces found by both whose boxes have an IoU of at least 0.95.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from measured import conclude, over, table
from PIL import Image

from sparface.faces import Alignment, Photo, list_photos, open_photo
from sparface.faces.batches import aligned
from sparface.faces.detect import Detector

if TYPE_CHECKING:
    from facenet_pytorch import MTCNN

BAR, SAME = 5.0, 0.95
PHOTOS = 10_000
BATCH = 16


def main() -> int:
    from facenet_pytorch import MTCNN  # not at the top, which sparface's processes import as well

    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--photos", type=Path, required=True, help="a folder of photos per person")
    options.add_argument("--quick", action="store_true", help="fewer photos: end within a minute")
    asked = options.parse_args()
    count, rounds, compared = (400, 1, 100) if asked.quick else (1000, 3, 1000)
    listed = list_photos(asked.photos)
    photos = listed[:: max(1, len(listed) // count)][:count]
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    networks = MTCNN()
    runs: dict[str, list[Run]] = {"sparface": [], "facenet-pytorch": []}
    for _ in range(rounds):
        runs["sparface"].append(Run(aligned(photos, Alignment(), cores), BATCH * cores))
        runs["facenet-pytorch"].append(Run((crop(networks, photo) for photo in photos), BATCH * cores))
    rates = {name: [run.rate for run in done] for name, done in runs.items()}
    table(rates, "photos/s")
    ours, theirs = runs.values()
    rate = statistics.median(over(rates["sparface"], rates["facenet-pytorch"]))
    return conclude(
        "align",
        over([run.seconds(PHOTOS) for run in theirs], [run.seconds(PHOTOS) for run in ours]),
        BAR,
        ratio_of_rates=round(rate, 3),
        start=round(statistics.median(run.start for run in ours), 2),
        photos=len(photos),
        cores=cores,
        rounds=rounds,
        **compare(photos[:compared]),
    )


class Run:
    """The times of a run over all photos."""

    def __init__(self, results: Iterator[Any], first: int) -> None:
        self._first = first
        began = time.perf_counter()
        for _ in itertools.islice(results, first):
            pass
        self.start = time.perf_counter() - began
        """Seconds until the first results."""
        count = sum(1 for _ in results)
        self.rate = count / (time.perf_counter() - began - self.start)
        """Photos per second after the first results."""

    def seconds(self, count: int) -> float:
        """Seconds for `count` photos, including the start."""
        return self.start + (count - self._first) / self.rate


def crop(networks: MTCNN, photo: Photo) -> Any:
    """The README's loop body."""
    return networks(Image.open(photo.path))


def compare(photos: Sequence[Photo]) -> dict[str, Any]:
    """Faces found by both, the share of those with the same box, and faces found by only one."""
    from facenet_pytorch import MTCNN

    networks, detector = MTCNN(keep_all=True), Detector()
    both = same = ours_only = theirs_only = 0
    for batch in batches(photos):
        images = [open_photo(photo.path) for photo in batch]
        for image, faces in zip(images, detector.detect(images), strict=True):
            boxes, _ = networks.detect(Image.fromarray(image))
            left = [] if boxes is None else list(boxes)
            for face in faces:
                overlaps = [iou(np.array(face.box), box) for box in left]
                if max(overlaps, default=0.0) < 0.5:
                    ours_only += 1
                    continue
                both += 1
                same += max(overlaps) >= SAME
                left.pop(int(np.argmax(overlaps)))
            theirs_only += len(left)
    return {"both": both, "same": round(same / both, 4), "ours_only": ours_only, "theirs_only": theirs_only}


def batches(photos: Sequence[Photo]) -> list[list[Photo]]:
    """Split photos into small batches of equal size."""
    by_size = itertools.groupby(photos, key=lambda photo: Image.open(photo.path).size)
    groups = [list(group) for _, group in by_size]
    return [group[first : first + BATCH] for group in groups for first in range(0, len(group), BATCH)]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    inner = np.maximum(sides, 0).prod()
    return float(inner / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - inner))


if __name__ == "__main__":
    sys.exit(main())
