"""Sunglasses and scarves, drawn where people wear them: over the eyes, and over mouth and nose.

Places are those of ArcFace's alignment template, x to the right and y down, from −1 to 1 over the face.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sparface.randomness import uniform
from sparface.variation.fields import places
from sparface.variation.occluders import SHARES, TEXTURE_DRAWS, between, textures

Garment = Literal["sunglasses", "scarf"]
STREAM = 7
"""Stream of `sparface.randomness`."""
Range = tuple[float, float]

SUNGLASSES: dict[str, Range] = {
    "tilt": (-math.radians(7), math.radians(7)),
    "x": (-0.08, 0.08),
    "y": (-0.21, 0.07),
    "distance": (0.28, 0.38),  # of the middle of a lens from that of the bridge
    "width": (0.22, 0.38),  # of half a lens, as are the others
    "height": (0.12, 0.30),
    "corners": (2.0, 7.0),  # exponent of the superellipse: from an ellipse to nearly a rectangle
    "drop": (0.0, 0.06),  # of the lenses below the middle of the frame
    "bridge": (0.0, 0.12),  # its height above the middle of the frame
    "bridge_width": (0.015, 0.05),
    "temple": (0.0, 0.10),
    "temple_width": (0.015, 0.06),
}
LENS: dict[str, Range] = {
    "darkness": (0.0, 1.0),
    "red": (-0.075, 0.075),
    "green": (-0.075, 0.075),
    "blue": (-0.075, 0.075),
    "reflection": (0.0, 1.0),
    "fade": (0.0, 1.0),
    "opacity": (0.8, 1.0),
}
SCARF: dict[str, Range] = {
    "top": (0.02, 0.50),
    "curve": (-0.35, 0.35),
    "middle": (-0.3, 0.3),
    "slope": (-0.15, 0.15),
}
"""What is drawn uniformly for each face."""


def wear(faces: Tensor, garment: Garment, seed: int, positions: Tensor) -> Tensor:
    """Let every face [b,3,H,W] in [0,1] wear a garment; `positions` int64 [b] are those in the stream.

    What is drawn depends on (seed, position, garment).
    """
    ranges = SUNGLASSES | LENS if garment == "sunglasses" else SCARF
    draws = uniform(seed, positions, len(ranges) + TEXTURE_DRAWS, STREAM).to(faces.dtype)
    drawn = {
        name: between(*limits, draws[:, i, None, None]) for i, (name, limits) in enumerate(ranges.items())
    }
    of_texture = draws[:, len(ranges) :]
    of_texture[:, 0] *= SHARES[0] + SHARES[1]  # the first two kinds: no cloth shows the face itself
    texture = textures(faces, of_texture)
    x, y = places(faces.shape[3], faces), places(faces.shape[2], faces)[:, None]
    pixels = faces.shape[2] / 2
    if garment == "scarf":
        cover = _filled(_below(drawn, x, y), pixels)
    else:
        cover = drawn["opacity"] * _frame(drawn, x, y, pixels)
        texture = _lens(drawn, y, texture)
    return torch.lerp(faces, texture.expand_as(faces), cover[:, None])


def _frame(drawn: dict[str, Tensor], x: Tensor, y: Tensor, pixels: float) -> Tensor:
    """How much of each pixel [b,H,W] is covered by two lenses, the bridge, or the temples."""
    x, y = x - drawn["x"], y - drawn["y"]
    cos, sin = torch.cos(drawn["tilt"]), torch.sin(drawn["tilt"])
    x, y = (cos * x + sin * y).abs(), cos * y - sin * x
    distance = drawn["distance"]
    width = torch.minimum(drawn["width"], distance - 0.03)  # the lenses do not meet
    across, down = (x - distance).abs() / width, (y - drawn["drop"]).abs() / drawn["height"]
    radius = (across ** drawn["corners"] + down ** drawn["corners"]) ** (1 / drawn["corners"])
    lens = _filled((1 - radius) * width, pixels)
    bridge = _filled(drawn["bridge_width"] - (y + drawn["bridge"]).abs(), pixels) * (x < distance)
    temple = _filled(drawn["temple_width"] - (y + drawn["temple"]).abs(), pixels) * (x > distance)
    return torch.maximum(lens, torch.maximum(bridge, temple))


def _lens(drawn: dict[str, Tensor], y: Tensor, texture: Tensor) -> Tensor:
    """The colour of the lenses [b,3,H,W]: mostly dark, often lighter below, with something reflected."""
    tint = torch.cat([drawn[name] for name in ("red", "green", "blue")], 1)[..., None]
    dark, reflection, fade = ((drawn[name] ** 2)[:, None] for name in ("darkness", "reflection", "fade"))
    reflected = 0.5 * reflection * (texture.mean(1, keepdim=True) - 0.3)
    return (0.35 * dark + tint + reflected + 0.3 * fade * (y + 0.3).clamp(0, 1)).clamp(0, 1)


def _below(drawn: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """How far each pixel [b,H,W] is below the edge of a scarf."""
    return y - drawn["top"] - drawn["curve"] * (x - drawn["middle"]) ** 2 - drawn["slope"] * x


def _filled(inside: Tensor, pixels: float) -> Tensor:
    """The covered share of pixels whose centres are `inside` an edge, which is one pixel wide."""
    return (inside * pixels + 0.5).clamp(0, 1)
