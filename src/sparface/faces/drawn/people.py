"""The people that are drawn, as numbers: what stays the same in every photo of one of them.

Head coordinates: x to the right and y down as seen in the photo, z towards the viewer; 1 is about half the
width of a head, and the origin is between nose and mouth, at the depth of the ears. Colours are linear RGB
in [0, 1].
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Colour = NDArray[np.float32]
"""[3]: linear RGB, 0 to 1."""


def colour(red: float, green: float, blue: float) -> Colour:
    """A colour given as in sRGB, 0 to 255, with its gamma taken as 2."""
    return np.asarray((np.array([red, green, blue]) / 255) ** 2, np.float32)


_SKIN = np.stack(
    [
        colour(*rgb)
        for rgb in (
            (252, 222, 204),
            (238, 194, 164),
            (214, 162, 126),
            (172, 118, 84),
            (122, 80, 58),
            (76, 50, 40),
        )
    ]
)
"""From the lightest to the darkest."""
_DARK_HAIR = np.stack([colour(*rgb) for rgb in ((26, 22, 22), (38, 30, 27), (58, 42, 33), (78, 56, 40))])
_LIGHT_HAIR = np.stack(
    [colour(*rgb) for rgb in ((106, 76, 50), (142, 108, 72), (188, 154, 104), (220, 196, 150), (150, 74, 40))]
)
_GREY = colour(196, 194, 192)
_DARK_IRIS = np.stack([colour(*rgb) for rgb in ((46, 30, 22), (74, 48, 30), (98, 68, 40))])
_LIGHT_IRIS = np.stack(
    [colour(*rgb) for rgb in ((104, 108, 66), (82, 116, 146), (116, 134, 148), (90, 124, 96))]
)
STYLES = (
    "bald",
    "buzzed",
    "short",
    "parted",
    "swept",
    "fringe",
    "receding",
    "long",
    "bob",
    "tied",
    "curly",
    "afro",
)
_STYLE_CHANCES = {
    True: np.array([0.1, 0.14, 0.22, 0.13, 0.1, 0.06, 0.12, 0.02, 0.01, 0.01, 0.06, 0.03]),
    False: np.array([0.0, 0.01, 0.06, 0.05, 0.06, 0.08, 0.0, 0.36, 0.14, 0.12, 0.08, 0.04]),
}
BEARDS = ("none", "stubble", "moustache", "goatee", "circle", "full")
_BEARD_CHANCES = (0.5, 0.18, 0.06, 0.05, 0.07, 0.14)

_SHAPE: dict[str, tuple[float, float, float, float]] = {
    # the head: half its width and depth, its height above and below the origin, and its outline
    "width": (0.77, 0.95, 0.2, 0.0),
    "depth": (0.92, 1.12, 0.0, 0.0),
    "top": (1.2, 1.45, 0.0, 0.0),
    "chin": (0.94, 1.2, 0.15, 0.0),
    "temples": (0.95, 1.12, 0.0, -0.1),
    "jaw": (0.84, 1.12, 0.3, 0.1),
    "chin_width": (0.75, 1.5, 0.3, 0.0),
    "ear": (0.1, 0.2, 0.2, 0.3),
    "ear_out": (-0.02, 0.1, 0.1, 0.0),
    # relief
    "brow_ridge": (0.0, 0.1, 0.5, 0.0),
    "socket": (0.06, 0.2, 0.0, 0.2),
    "cheekbone": (0.0, 0.13, 0.0, -0.1),
    "cheek_y": (-0.02, 0.18, 0.0, 0.1),
    "cheek": (-0.08, 0.12, -0.1, -0.1),
    "jaw_corner": (0.0, 0.1, 0.3, 0.0),
    "chin_out": (0.0, 0.16, 0.2, 0.0),
    "cleft": (-0.06, 0.04, 0.1, 0.0),
    "muzzle": (0.0, 0.12, 0.0, 0.0),
    # eyes and brows
    "eye_apart": (0.34, 0.45, 0.0, 0.0),
    "eye_y": (-0.42, -0.29, 0.0, 0.0),
    "eye_width": (0.16, 0.215, 0.0, -0.1),
    "eye_height": (0.055, 0.11, -0.15, -0.25),
    "eye_slant": (-0.2, 0.24, -0.1, -0.2),
    "eye_skew": (-0.35, 0.35, 0.0, 0.0),
    "iris": (0.062, 0.082, 0.0, 0.0),
    "lash": (0.3, 1.0, -0.4, -0.2),
    "crease": (0.03, 0.11, 0.0, 0.0),
    "crease_depth": (0.0, 0.6, -0.1, 0.1),
    "bags": (0.0, 0.4, 0.0, 0.4),
    "brow_gap": (0.11, 0.25, -0.3, 0.0),
    "brow_thick": (0.02, 0.075, 0.35, 0.0),
    "brow_slope": (-0.22, 0.22, 0.15, 0.0),
    "brow_arch": (0.0, 0.1, -0.3, 0.0),
    "brow_length": (0.2, 0.3, 0.0, 0.0),
    "brow_in": (-0.05, 0.05, 0.0, 0.0),
    "brow_dense": (0.55, 1.0, 0.2, -0.2),
    # nose
    "nose_y": (0.06, 0.28, 0.0, 0.25),
    "nose_width": (0.13, 0.26, 0.15, 0.15),
    "bridge": (0.07, 0.13, 0.0, 0.0),
    "bridge_out": (0.02, 0.16, 0.15, 0.0),
    "nose_out": (0.2, 0.38, 0.1, 0.1),
    "hump": (-0.04, 0.07, 0.1, 0.0),
    "tip": (0.08, 0.15, 0.1, 0.1),
    "nostril": (0.2, 0.9, 0.0, 0.0),
    # mouth
    "mouth_y": (0.46, 0.64, 0.0, 0.1),
    "mouth_width": (0.25, 0.38, 0.1, 0.0),
    "lip_upper": (0.025, 0.09, -0.15, -0.2),
    "lip_lower": (0.04, 0.12, -0.1, -0.2),
    "bow": (0.0, 0.5, 0.0, 0.0),
    "mouth_corner": (-0.08, 0.06, 0.0, -0.2),
    "fold": (0.0, 0.5, 0.0, 0.5),
    # hair
    "hairline": (-1.05, -0.72, 0.0, -0.1),
    "volume": (0.05, 0.2, -0.2, 0.0),
    "side": (-0.35, 0.15, 0.1, 0.0),
    "part": (-0.6, 0.6, 0.0, 0.0),
    "curl": (0.0, 1.0, 0.0, 0.0),
    "gloss": (0.0, 1.0, -0.1, 0.0),
    # asymmetry
    "eyes_tilt": (-0.025, 0.025, 0.0, 0.0),
    "mouth_tilt": (-0.04, 0.04, 0.0, 0.0),
    "nose_bend": (-0.05, 0.05, 0.0, 0.0),
    "eye_uneven": (-0.12, 0.12, 0.0, 0.0),
    "brow_uneven": (-0.03, 0.03, 0.0, 0.0),
}
"""Least and greatest value of each length (in head coordinates), angle (radians) or ratio, and how far, as a
share of that range, it is moved from a woman to a man and from 18 to 80 years."""


@dataclass(frozen=True)
class Person:
    """The traits of an identity."""

    man: bool
    age: float
    """0 to 1: 18 to 80 years."""
    skin: Colour
    ruddy: float
    """How red cheeks, nose and lips are, 0 to 1."""
    lips: Colour
    hair: Colour
    brows: Colour
    iris: Colour
    style: str
    beard: str
    makeup: float
    shape: dict[str, float]
    """Name → length, angle or ratio; see `_SHAPE`."""
    moles: Points
    """[M, 3]: x, y, radius."""
    freckles: float
    """Strength, 0 to 1."""
    wrinkles: float
    glasses: bool
    texture: int
    """Seed of the pattern of the skin."""


@functools.lru_cache(maxsize=64)
def person(seed: int, number: int) -> Person:
    """Sample the person with a number; a pure function."""
    rng = np.random.default_rng([seed, number, 0, 1])
    man, age = bool(rng.random() < 0.5), float(rng.beta(1.6, 2.0))
    gender, years = rng.uniform(0.5, 1) * (1 if man else -1), age - 0.4
    shape = {}
    for name, (low, high, by_gender, by_age) in _SHAPE.items():
        where = rng.uniform() + 0.5 * by_gender * gender + by_age * years
        shape[name] = float(low + (high - low) * np.clip(where, 0, 1))
    tone = rng.uniform(0, len(_SKIN) - 1) if rng.random() < 0.6 else rng.uniform(0, 2.2)
    ruddy = float(rng.uniform())
    skin = _blend(_SKIN, tone) * (1 + 0.12 * (ruddy - 0.5) * np.array([1, -0.6, -0.5]))
    skin = skin * rng.normal(1, 0.04, 3)
    light_hair = rng.random() < max(0.0, 0.55 - 0.22 * tone)
    hair = _pick(_LIGHT_HAIR if light_hair else _DARK_HAIR, rng) * rng.uniform(0.8, 1.25)
    grey = float(np.clip(1.6 * (age - 0.55) + rng.normal(0, 0.2), 0, 1)) if age > 0.35 else 0.0
    light_iris = rng.random() < max(0.02, 0.6 - 0.25 * tone)
    makeup = 0.0 if man else float(rng.uniform(0, 1))
    redder = np.array([1, 0.62 - 0.25 * makeup, 0.68 - 0.2 * makeup])
    lips = skin * redder * rng.uniform(0.72, 1.0) * rng.normal(1, 0.08, 3)
    return Person(
        man=man,
        age=age,
        skin=_valid(skin),
        ruddy=ruddy,
        lips=_valid(lips),
        hair=_valid(hair * (1 - grey) + _GREY * grey * rng.uniform(0.6, 1)),
        brows=_valid(hair * (1 - 0.6 * grey) * rng.uniform(0.5, 1.1) + _GREY * 0.3 * grey),
        iris=_valid(_pick(_LIGHT_IRIS if light_iris else _DARK_IRIS, rng) * rng.uniform(0.7, 1.3)),
        style=str(rng.choice(STYLES, p=_STYLE_CHANCES[man])),
        beard=str(rng.choice(BEARDS, p=_BEARD_CHANCES)) if man else "none",
        makeup=makeup,
        shape=shape,
        moles=np.column_stack(
            [rng.uniform(-0.75, 0.75, 3), rng.uniform(-0.75, 0.9, 3), rng.uniform(0.018, 0.04, 3)]
        )[: rng.integers(4)],
        freckles=float(rng.uniform()) if rng.random() < 0.25 and tone < 2.5 else 0.0,
        wrinkles=float(np.clip(1.4 * (age - 0.35) + rng.normal(0, 0.15), 0, 1)),
        glasses=bool(rng.random() < 0.15),
        texture=int(rng.integers(2**31)),
    )


def _blend(stops: NDArray[np.float32], where: float) -> Colour:
    low = min(int(where), len(stops) - 2)
    return np.asarray(stops[low] + (stops[low + 1] - stops[low]) * np.float32(where - low))


def _pick(colours: NDArray[np.float32], rng: np.random.Generator) -> Colour:
    return np.asarray(_blend(colours, rng.uniform(0, len(colours) - 1)))


def _valid(value: NDArray[np.floating]) -> Colour:
    return np.asarray(np.clip(value, 0.003, 0.98), np.float32)
