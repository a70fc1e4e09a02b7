"""The image pyramid of face detection, with the scales of facenet-pytorch's MTCNN."""

from __future__ import annotations

import math
from collections.abc import Iterator

MIN_FACE = 20
"""Smallest face in pixels: MTCNN was trained on faces of 12 to 48 pixels; below 20 it finds mostly noise."""
WINDOW = 12
"""Receptive field of the first network in pixels; it detects faces that fill this window."""
_STEP = 0.709
"""Ratio of consecutive scales."""


def scales(shorter: int, smallest: float) -> Iterator[float]:
    """Yield the scale factors to find faces from `smallest` pixels in a photo with this shorter side."""
    scale = WINDOW / smallest
    while shorter * scale >= WINDOW:
        yield scale
        scale *= _STEP


def step_below(side: float) -> float:
    """Round `side` down to the smallest face, in pixels, that one of facenet-pytorch's scales finds."""
    steps = math.floor(math.log(max(side, MIN_FACE) / MIN_FACE) / -math.log(_STEP))
    return MIN_FACE / _STEP**steps
