"""Random numbers as a pure function of (seed, position in the data stream, column, stream).

The generator is counter-based and stateless, so a sample's variation or noise does not depend on the
number of processes, workers or restarts. The hash is the finalizer of splitmix64 (Steele, Lea & Flood
2014), computed with int64 tensor operations on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def uniform(seed: int, positions: Tensor, count: int, stream: int = 0) -> Tensor:
    """Uniform float32 [B, count] in [0, 1) for int64 `positions` [B], on the same device.

    `stream` separates the uses of one position (variation, noise, targets, …).
    """
    return _top_bits(_hash(seed, positions, count, stream)) * 2.0**-24


def normal(seed: int, positions: Tensor, shape: Sequence[int], stream: int = 0) -> Tensor:
    """Standard normal float32 [B, *shape] by Box–Muller; |value| ≤ 5.8 (24 bits per draw)."""
    values = math.prod(shape)
    pairs = (values + 1) // 2
    hashed = _hash(seed, positions, 2 * pairs, stream)
    radius = torch.sqrt(-2 * torch.log((_top_bits(hashed[:, :pairs]) + 1) * 2.0**-24))
    angle = _top_bits(hashed[:, pairs:]) * (2 * math.pi * 2.0**-24)
    both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return both[:, :values].reshape(len(positions), *shape)


def fingerprint(faces: Tensor) -> Tensor:
    """Positions int64 [B] that depend on the content of faces [B,…] in [0,1] alone, in steps of 2^-20."""
    values = (faces.detach().flatten(1).double() * 2**20).round().to(torch.int64)
    columns = torch.arange(1, values.shape[1] + 1, device=faces.device)
    return (values * (_mix(columns * _signed(_GOLDEN)) | 1)).sum(1)


def _hash(seed: int, positions: Tensor, count: int, stream: int) -> Tensor:
    """Hash each position and column to 64 bits, as int64 [B, count]."""
    base = _mix_int(_mix_int(seed) + _GOLDEN * (stream + 1))
    keys = _mix(positions.to(torch.int64) * _signed(_GOLDEN) + _signed(base))
    columns = torch.arange(1, count + 1, device=positions.device)
    return _mix(keys[:, None] + columns * _signed(_GOLDEN))


def _top_bits(hashed: Tensor) -> Tensor:
    """The upper 24 bits as float32, which represents them exactly."""
    return _shift(hashed, 40).to(torch.float32)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; `>>` in torch is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """The int64 with the same bits."""
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x
