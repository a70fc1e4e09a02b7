"""What is seen at each pixel before it is lit: colour, surface direction and gloss, layer over layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]
"""[H, W]"""


class Canvas:
    """Layers of a picture of size × size pixels. Later layers cover earlier ones."""

    def __init__(self, size: int, unit: float) -> None:
        self.size = size
        self.pixel = 1 / unit
        """Width of a pixel in head coordinates."""
        self.albedo = np.zeros((3, size, size), np.float32)
        self.normal = np.zeros((3, size, size), np.float32)
        self.normal[2] = 1
        self.gloss = np.zeros((size, size), np.float32)
        self.shown = np.zeros((size, size), np.float32)
        """Share of each pixel that is not background."""

    def inside(self, distance: Plane, blur: float = 0.0) -> Plane:
        """Share of each pixel inside a shape, given the distance to its edge (positive inside), which is
        `blur` wide (0: sharp, but anti-aliased)."""
        return _share(distance * np.float32(1 / max(self.pixel, blur)) + np.float32(0.5))

    def line(self, distance: Plane, width: float, strength: float = 1.0) -> Plane:
        """Coverage by a line of a width, given the distance to its middle; thin ones get fainter."""
        half = max(width / 2, 0.6 * self.pixel)
        strength *= min(1.0, width / (1.2 * self.pixel))
        return self.inside(half - np.abs(distance)) * np.float32(strength)

    def cover(
        self,
        share: Plane,
        colour: NDArray[np.float32],
        normal: NDArray[np.float32] | None = None,
        gloss: float = 0.0,
    ) -> None:
        """Lay a surface over the picture, where `share` > 0. `colour` is [3] or [3, H, W]."""
        self.tint(share, colour)
        if normal is not None:
            self.normal += share * (normal - self.normal)
        self.gloss += share * (np.float32(gloss) - self.gloss)
        self.shown = np.maximum(self.shown, share)

    def tint(self, share: Plane, colour: NDArray[np.float32]) -> None:
        """Paint on what is there: its shape and gloss stay."""
        over = colour if colour.ndim == 3 else colour[:, None, None]
        self.albedo += share * (over - self.albedo)


def bump(x: Plane, y: Plane, width: float, height: float) -> Plane:
    """exp(−(x / width)² − (y / height)²)."""
    return np.asarray(np.exp(-((x * np.float32(1 / width)) ** 2) - (y * np.float32(1 / height)) ** 2))


def _share(value: Plane) -> Plane:
    return np.asarray(np.clip(value, 0, 1))


def ramp(value: Plane, low: float, high: float) -> Plane:
    """0 below `low`, 1 above `high`, smooth in between."""
    share = _share((value - np.float32(low)) * np.float32(1 / (high - low)))
    return share * share * (3 - 2 * share)


def waves(x: Plane, y: Plane, rng: np.random.Generator, pitch: float, count: int = 4) -> Plane:
    """A random pattern, about −1 to 1, with structures of a size of `pitch`."""
    total = np.zeros_like(x)
    for _ in range(count):
        direction, phase, ratio = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.7)
        frequency = 2 * np.pi * ratio / pitch
        along = np.float32(np.cos(direction) * frequency) * x + np.float32(np.sin(direction) * frequency) * y
        total += np.sin(along + np.float32(phase))
    return total * np.float32(count**-0.5)
