"""Finding faces and their five landmarks: the MTCNN of facenet-pytorch, on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

_MIN_FACE = 20
"""MTCNN was trained on faces of 12 to 48 pixels; below 20 it finds mostly noise."""
_WORKING_SIDE = 720
"""Detection runs on photos shrunk to this shorter side; the pixels of the face do not."""
_COARSE, _FINE = 0.2, 0.05
"""Smallest face looked for, as a share of the shorter side: first try, then if none was found."""
_CROPPED, _SCANNED = 0.5, 0.33
"""Smallest face in an already cropped image that counts, and that is scanned for, as a share of
its shorter side."""
_BORDERS = (0.5, 0.4, 0.6)
"""Widths of the grey border around an already cropped image, share of its shorter side."""
_STRICT, _LENIENT = [0.6, 0.7, 0.7], [0.5, 0.6, 0.5]
"""Least scores after MTCNN's three stages: facenet-pytorch's, and where a face is sure to be."""


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
        """Pixels from the box's centre to a point."""
        left, top, right, bottom = self.box
        return float(np.hypot((left + right) / 2 - x, (top + bottom) / 2 - y))


class Detector:
    """MTCNN with its three networks loaded once; the weights come with facenet-pytorch."""

    def __init__(self) -> None:
        # Imported here: it takes seconds, and the main process and demo faces need none of it.
        from facenet_pytorch import MTCNN
        from facenet_pytorch.models.utils.detect_face import detect_face

        self._mtcnn, self._detect_face = MTCNN(keep_all=True, device="cpu"), detect_face

    def detect(self, image: np.ndarray, *, smallest: float | None = None) -> list[Detection]:
        """All faces of a photo, uint8 [H, W, 3], the most certain first.

        `smallest` is the side of the smallest face looked for, as a share of the shorter side of
        the photo; without it large faces are looked for first, and small ones only if there are
        none: a pyramid down to small faces costs several times as much.
        """
        shrunk, factor = _shrink(image)
        for share in (_COARSE, _FINE) if smallest is None else (smallest,):
            found = self._run(shrunk, max(_MIN_FACE, share * min(shrunk.shape[:2])), _STRICT)
            if found:
                return [_scaled(detection, factor) for detection in found]
        return []

    def detect_cropped(self, image: np.ndarray) -> list[Detection]:
        """Faces of an image that shows little more than one face, in its own coordinates.

        MTCNN needs some surroundings, so it sees the image with a grey border; where it finds
        nothing, another border gives it the face at other scales. As a face is known to be there,
        it may be less certain, but not small: parts of a face that look like one are left out.
        """
        shorter = min(image.shape[:2])
        for border in _BORDERS:
            width = round(border * shorter)
            grey = np.pad(image, ((width, width), (width, width), (0, 0)), constant_values=128)
            shrunk, factor = _shrink(grey)
            found = self._run(shrunk, max(_MIN_FACE, _SCANNED * shorter / factor), _LENIENT)
            moved = [_moved(_scaled(detection, factor), width) for detection in found]
            large = [detection for detection in moved if detection.side >= _CROPPED * shorter]
            if large:
                return large
        return []

    def _run(self, image: np.ndarray, min_face: float, thresholds: list[float]) -> list[Detection]:
        if min(image.shape[:2]) < min_face:
            return []
        nets = self._mtcnn
        with torch.inference_mode():
            boxes, points = self._detect_face(
                image, min_face, nets.pnet, nets.rnet, nets.onet, thresholds, nets.factor, nets.device
            )
        found = [
            Detection((left, top, right, bottom), landmarks, score)
            for (left, top, right, bottom, score), landmarks in zip(
                boxes[0].astype(float).tolist(), points[0].astype(float), strict=True
            )
        ]
        return sorted(found, key=lambda detection: -detection.score)


def _shrink(image: np.ndarray) -> tuple[np.ndarray, int]:
    factor = max(1, min(image.shape[:2]) // _WORKING_SIDE)
    return (np.asarray(Image.fromarray(image).reduce(factor)) if factor > 1 else image), factor


def _scaled(detection: Detection, factor: int) -> Detection:
    left, top, right, bottom = (side * factor for side in detection.box)
    # The centre of a shrunk pixel is the centre of the pixels that it averages.
    landmarks = detection.landmarks * factor + (factor - 1) / 2
    return Detection((left, top, right, bottom), landmarks, detection.score)


def _moved(detection: Detection, border: int) -> Detection:
    left, top, right, bottom = (side - border for side in detection.box)
    return Detection((left, top, right, bottom), detection.landmarks - border, detection.score)


def choose(detections: list[Detection], width: int, height: int) -> Detection | None:
    """The face that the photo is of: large and near the centre.

    A face on the edge of the shorter side must be 7.4 times as large to win over a centred one:
    boxes that span two neighbours are larger than either, and a background may hold a poster.
    """
    shorter = min(width, height)

    def prominence(detection: Detection) -> float:
        away = detection.distance((width - 1) / 2, (height - 1) / 2) / shorter
        return detection.side * float(np.exp(-8 * away**2))

    return max(detections, key=prominence, default=None)
