"""Photos of drawn people in which any detector finds a face."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparface.faces.drawn import draw, person, scene


def portrait(number: int, photo: int, size: int = 160) -> NDArray[np.uint8]:
    """A person from the front, in focus and good light, with eyes open and nothing before the face."""
    view = scene(0, number, photo)
    plain = replace(view, yaw=view.yaw / 4, pitch=view.pitch / 4, wears="none", style="", mouth_open=0.0)
    plain = replace(plain, eyes_open=1.0, blur=0.0, shrink=1.0, noise=0.0, quality=95, gain=1.1, hard=0.5)
    return draw(person(0, number), plain, size)
