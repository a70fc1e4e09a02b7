"""Faces that are partly covered and little changed otherwise, to fine-tune a good recognizer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparface.randomness import uniform
from sparface.variation.classic import STREAM
from sparface.variation.occluders import WIDE, between, draw_occluders, occlude
from sparface.variation.wear import wear

CHOICE_STREAM = 8
"""Stream of `sparface.randomness` of what a face wears."""
COVERED = replace(WIDE, share=0.7)
GREY_SHARE = 0.5
GAMMA = 0.4
"""Largest change of the log of the gamma exponent."""


SUNGLASSES_SHARE, SCARF_SHARE = 0.35, 0.15


def vary(faces: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Cover most faces [b,3,H,W] in [0,1] at a random place; `positions` int64 [b] are in the stream."""
    toned = _toned(faces, seed, positions)
    return occlude(toned, draw_occluders(toned, seed, positions, COVERED))


def dress(faces: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Let half of the faces wear sunglasses or a scarf, and change the others as `vary` does."""
    toned = _toned(faces, seed, positions)
    covered = occlude(toned, draw_occluders(toned, seed, positions, COVERED))
    kind = uniform(seed, positions, 1, CHOICE_STREAM)[:, :, None, None]
    with_scarf = torch.where(
        kind < SUNGLASSES_SHARE + SCARF_SHARE, wear(toned, "scarf", seed, positions), covered
    )
    return torch.where(kind < SUNGLASSES_SHARE, wear(toned, "sunglasses", seed, positions), with_scarf)


def _toned(faces: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Change the gamma of faces, and take the colours of some."""
    draws = uniform(seed, positions, 2, STREAM)[:, :, None, None, None].to(faces.dtype)
    faces = faces ** torch.exp(between(-GAMMA, GAMMA, draws[:, 0]))
    return torch.where(draws[:, 1] < GREY_SHARE, faces.mean(1, keepdim=True), faces)
