"""Random changes of faces on the device, as functions of (seed, position in the stream).

The strong variation and the occluders are drawn and applied apart, so a network may choose what is drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparface.config import VariationKind
from sparface.randomness import uniform
from sparface.variation import classic, covered
from sparface.variation.changes import apply
from sparface.variation.occluders import WIDE, Family, Occluders, coverage, draw_occluders, occlude
from sparface.variation.strong import PARAMETERS, Variation, bounded, draw

__all__ = [
    "PARAMETERS",
    "WIDE",
    "Family",
    "Occluders",
    "Variation",
    "apply",
    "bounded",
    "coverage",
    "draw",
    "draw_occluders",
    "occlude",
    "vary",
]


def vary(faces: Tensor, kind: VariationKind, seed: int, positions: Tensor, strength: float = 1.0) -> Tensor:
    """Return faces [b,3,H,W] in [0,1], changed; `positions` int64 [b] are their positions in the stream.

    `strength` is as in `draw`, and for `strong` only.
    """
    match kind:
        case "none":
            return faces
        case "mirror":
            mirrored = uniform(seed, positions, 1, classic.STREAM)[:, :, None, None] < 0.5
            return torch.where(mirrored, faces.flip(3), faces)
        case "classic":
            return classic.vary(faces, seed, positions)
        case "strong":
            return apply(faces, draw(seed, positions, strength, dtype=faces.dtype))
        case "covered":
            return covered.vary(faces, seed, positions)
