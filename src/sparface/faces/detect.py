"""Detect faces and their five landmarks with the MTCNN of facenet-pytorch, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sparface.faces.pyramid import MIN_FACE, step_below

_WORKING_SIDE = 720
"""Shorter side to which photos are shrunk for detection; faces are cropped at full resolution."""
_COARSE, _FINE = 0.2, 0.05
"""Smallest face to detect, as a fraction of the shorter side: at first, and if no face was found."""
_CROPPED, _SCANNED = 0.5, 0.33
"""Smallest face in an already cropped image to accept and to scan for, as a fraction of the shorter side."""
_BORDERS = (0.5, 0.4, 0.6)
"""Widths of the grey border around an already cropped image, as fractions of its shorter side."""
_STRICT, _LENIENT = [0.6, 0.7, 0.7], [0.5, 0.6, 0.5]
"""Minimum scores after MTCNN's three stages: those of facenet-pytorch, and those for cropped images."""


@dataclass(frozen=True)
class Detection:
    """One face: box (left, top, right, bottom) and landmarks [5, 2] in pixels, score in [0, 1]."""

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    score: float

    @property
    def side(self) -> float:
        """Geometric mean of the box's width and height, in pixels."""
        left, top, right, bottom = self.box
        return math.sqrt(max(right - left, 0) * max(bottom - top, 0))

    def distance(self, x: float, y: float) -> float:
        """Distance in pixels from the box's centre to a point."""
        left, top, right, bottom = self.box
        return float(np.hypot((left + right) / 2 - x, (top + bottom) / 2 - y))

    def rounded(self) -> Detection:
        """Round to a hundredth of a pixel, as recorded: the face can be reproduced from the record and does
        not depend on the last bits of floating-point sums."""
        left, top, right, bottom = (round(side, 2) for side in self.box)
        return Detection((left, top, right, bottom), self.landmarks.round(2), self.score)


class Detector:
    """An MTCNN face detector."""

    def __init__(self) -> None:
        # This import takes seconds, and the main process and drawn faces don't need it.
        from sparface.faces.cascade import Cascade

        self._cascade = Cascade()

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Find all faces in each photo, uint8 [H, W, 3], by descending score; all photos have the same size.

        Small faces are searched for only in photos without large ones, because a pyramid down to small faces
        costs several times as much. The scales, and therefore the boxes of large faces, are those of
        facenet-pytorch.
        """
        shrunk, factor = _shrink(images)
        shorter = min(shrunk[0].shape[:2])
        found: list[list[Detection]] = [[] for _ in images]
        for share in (_COARSE, _FINE):
            without = [number for number, faces in enumerate(found) if not faces]
            smallest = step_below(share * shorter)
            for number, faces in zip(
                without, self._run([shrunk[number] for number in without], smallest, _STRICT), strict=True
            ):
                found[number] = [_scaled(face, factor) for face in faces]
        return found

    def detect_cropped(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Find the faces in images of the same size that show little more than one face.

        MTCNN needs some context, so a grey border is added; if no face is found, other widths present the
        face at other scales. Since the image is known to show a face, lower scores are accepted, but no small
        faces, which are usually parts of the face. Coordinates are those of the image without the border.
        """
        shorter = min(images[0].shape[:2])
        found: list[list[Detection]] = [[] for _ in images]
        for border in _BORDERS:
            without = [number for number, faces in enumerate(found) if not faces]
            width = round(border * shorter)
            around = ((width, width), (width, width), (0, 0))
            shrunk, factor = _shrink([np.pad(images[n], around, constant_values=128) for n in without])
            smallest = max(MIN_FACE, _SCANNED * shorter / factor)
            for number, faces in zip(without, self._run(shrunk, smallest, _LENIENT), strict=True):
                moved = [_moved(_scaled(face, factor), width) for face in faces]
                found[number] = [face for face in moved if face.side >= _CROPPED * shorter]
        return found

    def _run(
        self, images: Sequence[np.ndarray], smallest: float, thresholds: list[float]
    ) -> list[list[Detection]]:
        if not images or min(images[0].shape[:2]) < smallest:
            return [[] for _ in images]
        return [
            [
                Detection((left, top, right, bottom), landmarks.astype(float), score)
                for (left, top, right, bottom), landmarks, score in zip(
                    found.boxes.tolist(), found.landmarks, found.scores.tolist(), strict=True
                )
            ]
            for found in self._cascade.find(images, smallest, thresholds)
        ]


def _shrink(images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """Shrink images of one size for detection; returns the images and the factor."""
    factor = max(1, min(images[0].shape[:2]) // _WORKING_SIDE) if images else 1
    if factor == 1:
        return list(images), 1
    return [np.asarray(Image.fromarray(image).reduce(factor)) for image in images], factor


def _scaled(detection: Detection, factor: int) -> Detection:
    left, top, right, bottom = (side * factor for side in detection.box)
    # The centre of a shrunk pixel is the centre of the pixels that were averaged.
    landmarks = detection.landmarks * factor + (factor - 1) / 2
    return Detection((left, top, right, bottom), landmarks, detection.score)


def _moved(detection: Detection, border: int) -> Detection:
    left, top, right, bottom = (side - border for side in detection.box)
    return Detection((left, top, right, bottom), detection.landmarks - border, detection.score)


def choose(detections: list[Detection], width: int, height: int) -> Detection | None:
    """Choose the main face of a photo: large and near the centre.

    A face on the edge of the shorter side must be 7.4 times as large as a centred one to be chosen: boxes
    that span two neighbouring faces are larger than either, and the background may contain a poster.
    """
    shorter = min(width, height)

    def prominence(detection: Detection) -> float:
        away = detection.distance((width - 1) / 2, (height - 1) / 2) / shorter
        return detection.side * float(np.exp(-8 * away**2))

    return max(detections, key=prominence, default=None)
