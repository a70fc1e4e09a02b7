"""The sizes at which faces are looked for: those of facenet-pytorch's MTCNN."""

from __future__ import annotations

import math
from collections.abc import Iterator

MIN_FACE = 20
"""MTCNN was trained on faces of 12 to 48 pixels; below 20 it finds mostly noise."""
WINDOW = 12
"""Side of what its first network sees at a time, pixels: a face that fills it is found."""
_STEP = 0.709
"""Each scale over the one before it."""


def scales(shorter: int, smallest: float) -> Iterator[float]:
    """How much a photo of that shorter side is shrunk at each scale, down to faces of `smallest` pixels."""
    scale = WINDOW / smallest
    while shorter * scale >= WINDOW:
        yield scale
        scale *= _STEP


def step_below(side: float) -> float:
    """The largest of facenet-pytorch's scales, as the smallest face it finds, that is not above `side`."""
    steps = math.floor(math.log(max(side, MIN_FACE) / MIN_FACE) / -math.log(_STEP))
    return MIN_FACE / _STEP**steps
