"""Filters that reject variants."""

from __future__ import annotations

import torch
from torch import Tensor

from sparface.generate.settings import FilterConfig

REASONS = ("strayed", "near_copy", "dead_mask")
"""Why a variant is rejected: too far from its source, too near to it, or a dead mask."""


def verdicts(rules: FilterConfig, cosine: Tensor | None, change: Tensor, mask: Tensor) -> Tensor:
    """Judge variants; returns int64 [B]: 0 if accepted, else 1 + the index in `REASONS` of the first reason.

    All inputs are [B]: the `cosine` to the source (None if not filtered by it), the `change`, and the mean of
    the `mask`.
    """
    least = -1.0 if cosine is None or rules.cosine is None else rules.cosine
    strayed = (torch.ones_like(change) if cosine is None else cosine) < least
    reasons = torch.stack([strayed, change < rules.change, mask < rules.mask])
    return torch.where(reasons.any(0), 1 + reasons.int().argmax(0), 0)
