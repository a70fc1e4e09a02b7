"""The people and scenes of demo faces, as numbers.

A person is a set of traits sampled from (seed, identity). A scene (pose, light, expression, occlusion,
background) is sampled from (seed, identity, image number). People share similar traits, and scenes vary more
than most traits, so pixels alone say little and identity must be learned.

Face coordinates: x to the right, y down, 1 is about half the width of a head, and the origin is between nose
and mouth.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Colour = NDArray[np.float64]
"""RGB, 0 to 255."""

_SKIN = np.array([[250, 218, 196], [232, 184, 148], [196, 140, 100], [142, 92, 62], [92, 60, 44]], float)
_HAIR = np.array(
    [[28, 24, 24], [62, 42, 30], [110, 74, 44], [176, 134, 84], [150, 70, 36], [150, 148, 146]], float
)
_IRIS = np.array([[52, 34, 22], [92, 62, 34], [98, 108, 62], [82, 116, 146], [110, 120, 124]], float)
_STYLES = ("bald", "short", "short", "parted", "fringe", "long", "curly", "peaked")
_BEARDS = ("none", "none", "none", "stubble", "moustache", "goatee", "full")


@dataclass(frozen=True)
class Person:
    """The traits that all images of an identity share. Lengths are in face coordinates."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    style: str
    beard: str
    shape: dict[str, float]
    """Name → length, angle or ratio; see `_SHAPE`."""
    moles: Points
    """[M, 3]: x, y, radius."""
    freckles: Points
    """[F, 2]"""


_SHAPE: dict[str, tuple[float, float]] = {
    "width": (0.82, 1.04),
    "top": (1.15, 1.4),
    "chin": (0.92, 1.2),
    "square": (2.0, 3.4),
    "jaw": (0.55, 1.0),
    "ear": (0.1, 0.22),
    "eye_apart": (0.33, 0.46),
    "eye_y": (-0.42, -0.28),
    "eye_width": (0.13, 0.21),
    "eye_height": (0.055, 0.115),
    "eye_slant": (-0.22, 0.22),
    "iris_size": (0.06, 0.085),
    "brow_gap": (0.11, 0.24),
    "brow_thick": (0.018, 0.07),
    "brow_slope": (-0.3, 0.3),
    "brow_arch": (0.0, 0.1),
    "brow_length": (0.18, 0.28),
    "nose_y": (0.06, 0.3),
    "nose_width": (0.1, 0.23),
    "bridge": (0.03, 0.08),
    "nose_tip": (0.04, 0.1),
    "mouth_y": (0.47, 0.66),
    "mouth_width": (0.22, 0.4),
    "lip_upper": (0.025, 0.085),
    "lip_lower": (0.035, 0.11),
    "fold": (0.0, 0.5),
    "hairline": (-1.0, -0.72),
    "volume": (0.04, 0.2),
    "side": (-0.5, 0.1),
    "part": (-0.5, 0.5),
}
"""Minimum and maximum of each length (in face coordinates), angle (radians) or ratio."""


@dataclass(frozen=True)
class Scene:
    """The properties that vary between the images of an identity."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: Points
    smile: float
    mouth_open: float
    eyes_open: float
    brow_raise: float
    gaze: Points
    light: Points
    """[2]: direction and strength of the light over the face."""
    gain: float
    gamma: float
    cast: Colour
    """[3]: factor per channel."""
    backdrop: Points
    """[2, 3]: the two colours of the background."""
    clothes: Colour
    occlusion: str
    blur: float
    noise: float
    detail: int
    """Seed of the details: shapes in the background and of the occlusion, and the noise."""


@functools.lru_cache(maxsize=64)
def person(seed: int, identity: int) -> Person:
    """Sample the person with a number; a pure function."""
    rng = np.random.default_rng([seed, identity, 0, 1])
    shape = {name: float(rng.uniform(low, high)) for name, (low, high) in _SHAPE.items()}
    skin = _blend(_SKIN, rng.uniform(0, len(_SKIN) - 1)) + rng.normal(0, 5, 3)
    lips = skin * rng.uniform(0.72, 0.92) + np.array([rng.uniform(5, 40), 0, rng.uniform(0, 12)])
    freckled = rng.random() < 0.25
    return Person(
        skin=skin,
        hair=_HAIR[rng.integers(len(_HAIR))] * rng.uniform(0.8, 1.2),
        iris=_IRIS[rng.integers(len(_IRIS))] * rng.uniform(0.8, 1.2),
        lips=lips,
        style=_STYLES[rng.integers(len(_STYLES))],
        beard=_BEARDS[rng.integers(len(_BEARDS))],
        shape=shape,
        moles=np.column_stack(
            [rng.uniform(-0.7, 0.7, 3), rng.uniform(-0.7, 0.9, 3), rng.uniform(0.02, 0.045, 3)]
        )[: rng.integers(4)],
        freckles=rng.normal((0, 0.05), (0.4, 0.13), (30, 2)) if freckled else np.zeros((0, 2)),
    )


def scene(seed: int, identity: int, image: int) -> Scene:
    """Sample the scene of one image of one person; a pure function."""
    rng = np.random.default_rng([seed, identity, image, 2])
    around = rng.uniform(0, 2 * np.pi)
    occlusions = ("none", "glasses", "sunglasses", "scarf", "hand", "cap")
    return Scene(
        yaw=float(np.clip(rng.normal(0, 0.22), -0.5, 0.5)),
        pitch=float(np.clip(rng.normal(0, 0.14), -0.35, 0.35)),
        roll=float(rng.normal(0, 0.06)),
        scale=float(rng.uniform(0.93, 1.07)),
        shift=rng.normal(0, 0.015, 2),
        smile=float(rng.uniform(-0.4, 1)),
        mouth_open=float(max(0.0, rng.uniform(-0.8, 1))),
        eyes_open=float(rng.uniform(0.35, 1.15) if rng.random() > 0.05 else 0.05),
        brow_raise=float(rng.normal(0, 0.03)),
        gaze=rng.uniform(-0.5, 0.5, 2) * (1, 0.4),
        light=np.array([np.cos(around), np.sin(around)]) * rng.uniform(0, 0.75),
        gain=float(rng.uniform(0.6, 1.3)),
        gamma=float(rng.uniform(0.75, 1.3)),
        cast=1 + rng.normal(0, 0.07, 3),
        backdrop=rng.uniform(10, 245, (2, 3)),
        clothes=rng.uniform(10, 240, 3),
        occlusion=str(rng.choice(occlusions, p=(0.68, 0.1, 0.06, 0.06, 0.05, 0.05))),
        blur=float(max(0.0, rng.uniform(-0.6, 0.9))),
        noise=float(rng.uniform(0, 8)),
        detail=int(rng.integers(2**31)),
    )


def _blend(stops: Points, where: float) -> Colour:
    low = min(int(where), len(stops) - 2)
    return np.asarray(stops[low] + (stops[low + 1] - stops[low]) * (where - low))
