"""Faces that are partly covered and little changed otherwise, to fine-tune a good recognizer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparface.randomness import uniform
from sparface.variation.classic import STREAM
from sparface.variation.occluders import WIDE, between, draw_occluders, occlude

COVERED = replace(WIDE, share=0.7)
GREY_SHARE = 0.5
GAMMA = 0.4
"""Largest change of the log of the gamma exponent."""


def vary(faces: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Change faces [b,3,H,W] in [0,1]; `positions` int64 [b] are their positions in the stream."""
    draws = uniform(seed, positions, 2, STREAM)[:, :, None, None, None].to(faces.dtype)
    faces = faces ** torch.exp(between(-GAMMA, GAMMA, draws[:, 0]))
    faces = torch.where(draws[:, 1] < GREY_SHARE, faces.mean(1, keepdim=True), faces)
    return occlude(faces, draw_occluders(faces, seed, positions, COVERED))
