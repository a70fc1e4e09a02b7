"""The conditions of a photo, as numbers: what varies between the photos of one person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparface.faces.drawn.people import BEARDS, STYLES, Colour

WEAR = ("none", "glasses", "sunglasses", "mask", "scarf", "hand", "cap", "hat", "thing")
_CHANCES = (0.76, 0.06, 0.04, 0.02, 0.02, 0.02, 0.03, 0.03, 0.02)


@dataclass(frozen=True)
class Scene:
    """The properties that vary between the photos of an identity."""

    yaw: float
    pitch: float
    """Radians; positive looks to the right and down in the photo."""
    distance: float
    """Of the camera, in head coordinates: 6 is a selfie."""
    roll: float
    scale: float
    shift: NDArray[np.float64]
    """[2], as a share of the picture: with roll and scale, what a detector misses the template by."""
    smile: float
    mouth_open: float
    eyes_open: float
    brow_raise: float
    frown: float
    gaze: NDArray[np.float64]
    light: NDArray[np.float64]
    """[3]: unit vector to the main light."""
    hard: float
    """Share of the main light, the rest coming from everywhere."""
    warm: Colour
    """[3]: colour of the main light."""
    rim: NDArray[np.float64]
    """[3]: a second light; its length is its strength."""
    gain: float
    gamma: float
    contrast: float
    saturation: float
    cast: Colour
    """[3]: factor per channel."""
    backdrop: NDArray[np.float32]
    """[2, 3]: the two colours of the background."""
    clothes: Colour
    wears: str
    style: str
    """Another hair style than the person's, or empty."""
    beard: str
    volume: float
    """Factor on the hair's volume."""
    mirrored: bool
    """The hair is parted on the other side."""
    blur: float
    shrink: float
    """Resolution, as a share of the picture's."""
    quality: int
    """Of the JPEG file that the photo went through."""
    noise: float
    detail: int
    """Seed of the details: background, what is worn, and the noise."""


def scene(seed: int, number: int, photo: int) -> Scene:
    """Sample the conditions of one photo of one person; a pure function."""
    rng = np.random.default_rng([seed, number, photo, 2])
    look = rng.normal(0, (0.3, 0.15))
    smiling = rng.random() < 0.55
    around, height = rng.normal(0, 0.9), rng.normal(-0.35, 0.45)
    light = np.array([np.sin(around) * np.cos(height), np.sin(height), np.cos(around) * np.cos(height)])
    behind = rng.uniform(0, 2 * np.pi)
    rim = np.array([np.cos(behind), np.sin(behind), -0.3]) * max(0.0, rng.uniform(-0.8, 0.6))
    changed = rng.random(3)
    return Scene(
        yaw=float(np.clip(look[0], -0.7, 0.7)),
        pitch=float(np.clip(look[1], -0.4, 0.4)),
        distance=float(rng.uniform(7, 30)),
        roll=float(rng.normal(0, 0.03)),
        scale=float(rng.normal(1, 0.025)),
        shift=rng.normal(0, 0.012, 2),
        smile=float(rng.uniform(0.3, 1) if smiling else rng.normal(0, 0.25)),
        mouth_open=float(max(0.0, rng.uniform(-0.3, 0.7) if smiling else rng.uniform(-0.8, 0.9))),
        eyes_open=float(np.clip(rng.normal(0.95, 0.2), 0.3, 1.35) if rng.random() > 0.04 else 0.04),
        brow_raise=float(rng.normal(0, 0.03)),
        frown=float(max(0.0, rng.normal(-0.2, 0.5))),
        gaze=np.clip(rng.normal(0, (0.3, 0.15)), -0.6, 0.6),
        light=light,
        hard=float(rng.beta(2.4, 1.5)),
        warm=np.asarray(1 + rng.normal(0, 0.08) * np.array([1, 0.1, -1]), np.float32),
        rim=rim,
        gain=float(np.exp(rng.normal(0, 0.2))),
        gamma=float(np.exp(rng.normal(0, 0.15))),
        contrast=float(rng.uniform(0.9, 1.3)),
        saturation=float(rng.uniform(0.7, 1.3) if rng.random() > 0.06 else 0),
        cast=np.asarray(np.exp(rng.normal(0, 0.06, 3)), np.float32),
        backdrop=np.stack([_muted(rng) for _ in range(2)]),
        clothes=_muted(rng),
        wears=str(rng.choice(WEAR, p=_CHANCES)),
        style=str(rng.choice(STYLES)) if changed[0] < 0.12 else "",
        beard=str(rng.choice(BEARDS)) if changed[1] < 0.2 else "",
        volume=float(rng.uniform(0.6, 1.5)),
        mirrored=bool(changed[2] < 0.3),
        blur=float(max(0.0, rng.uniform(-0.6, 0.9))),
        shrink=float(rng.uniform(0.35, 1) if rng.random() < 0.3 else 1),
        quality=int(rng.integers(45, 98)),
        noise=float(rng.uniform(0, 0.03) * rng.uniform()),
        detail=int(rng.integers(2**31)),
    )


def _muted(rng: np.random.Generator) -> Colour:
    """A colour as things have it: seldom bright and colourful at once."""
    return np.asarray(np.clip(rng.uniform(0.05, 0.9) + rng.normal(0, 0.1, 3), 0.02, 0.98) ** 2, np.float32)
