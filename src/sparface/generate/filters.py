"""Filters that reject variants, and the judge that compares a variant with its source."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from sparface.generate.settings import FilterConfig
from sparface.generate.variants import Judge
from sparface.models.onnx import OnnxRecognizer
from sparface.runs.trained import open_run

REASONS = ("strayed", "near_copy", "dead_mask")
"""Why a variant is rejected: too far from its source, too near to it, or a dead mask."""


def open_judge(path: Path, device: torch.device) -> tuple[Judge, str]:
    """Load the judge from a run folder or an ONNX file; returns it with a digest of its weights."""
    if path.suffix == ".onnx":
        return OnnxRecognizer(path), hashlib.sha256(path.read_bytes()).hexdigest()
    recognizer = open_run(path).network("recognizer", device)
    return recognizer, weights_digest(recognizer)


def weights_digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def verdicts(rules: FilterConfig, cosine: Tensor | None, change: Tensor, mask: Tensor) -> Tensor:
    """Judge variants; returns int64 [B]: 0 if accepted, else 1 + the index in `REASONS` of the first reason.

    All inputs are [B]: the `cosine` to the source (None if not filtered by it), the `change`, and the mean of
    the `mask`.
    """
    least = -1.0 if cosine is None or rules.cosine is None else rules.cosine
    strayed = (torch.ones_like(change) if cosine is None else cosine) < least
    reasons = torch.stack([strayed, change < rules.change, mask < rules.mask])
    return torch.where(reasons.any(0), 1 + reasons.int().argmax(0), 0)
