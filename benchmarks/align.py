"""Alignment of photos by all cores, over facenet-pytorch's own loop on as many threads.

    python benchmarks/align.py --photos FOLDER [--quick]

FOLDER has a folder of photos per person; drawn faces won't do, for MTCNN finds none in them. Ours is what
`sparface align` does for a photo: open it, find its faces and their landmarks, choose one, warp it onto the
template. The other is the loop of facenet-pytorch's README: `Image.open`, then `MTCNN()` on one image, which
finds the faces and crops one. Counted are photos a second once both run; `start` is how long our processes
take until then, and `ratio_with_start` is of the whole time, as if facenet-pytorch had none. All faces of all
photos are compared as well: of those that both find, the share whose boxes have an IoU of at least 0.95.
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
from typing import Any

import numpy as np
import torch
from facenet_pytorch import MTCNN
from measured import conclude, over, table
from PIL import Image

from sparface.faces import Alignment, Photo, list_photos, open_photo
from sparface.faces.detect import Detector
from sparface.faces.workers import aligned

BAR, SAME = 3.0, 0.95
BATCH = 8


def main() -> int:
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
    whole = statistics.median(over([run.whole for run in theirs], [run.whole for run in ours]))
    return conclude(
        "align",
        over(rates["sparface"], rates["facenet-pytorch"]),
        BAR,
        ratio_with_start=round(whole, 3),
        start=round(statistics.median(run.start for run in ours), 2),
        photos=len(photos),
        cores=cores,
        rounds=rounds,
        **compare(photos[:compared]),
    )


class Run:
    """The times of a run over all photos."""

    def __init__(self, results: Iterator[Any], first: int) -> None:
        began = time.perf_counter()
        for _ in itertools.islice(results, first):
            pass
        self.start = time.perf_counter() - began
        """Seconds until the first results are there."""
        count = sum(1 for _ in results)
        self.whole = time.perf_counter() - began
        """Seconds"""
        self.rate = count / (self.whole - self.start)
        """Photos a second after the first."""


def crop(networks: MTCNN, photo: Photo) -> Any:
    """The README's loop body."""
    return networks(Image.open(photo.path))


def compare(photos: Sequence[Photo]) -> dict[str, Any]:
    """Faces that both find, the share of those with the same box, and faces that only one finds."""
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
    """A few photos of one size each."""
    by_size = itertools.groupby(photos, key=lambda photo: Image.open(photo.path).size)
    groups = [list(group) for _, group in by_size]
    return [group[first : first + BATCH] for group in groups for first in range(0, len(group), BATCH)]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two boxes (left, top, right, bottom) over what they cover together."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    inner = np.maximum(sides, 0).prod()
    return float(inner / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - inner))


if __name__ == "__main__":
    sys.exit(main())
