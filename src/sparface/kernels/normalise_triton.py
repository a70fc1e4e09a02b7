"""`normalise` in Triton: a batch is a table with one row per pixel and one column per channel.

Forward reads x and writes the result. Backward reads x and the gradient twice: for their sums, and for the
gradient of x, which depends on the sums. Sums are accumulated in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparface.kernels.common import Figures

VALUES, WARPS = 4096, 4
"""Values (rows × channels) and warps per tile."""
MOST_CHANNELS = 128
"""Maximum number of columns in a tile."""
PROGRAMS = 528
"""Number of programs that compute sums, given enough rows: 4 per multiprocessor of an H100."""


class Table:
    """A batch [B,C] or [B,C,H,W] of `parts` parts as a table, divided into tiles."""

    def __init__(self, x: Tensor, parts: int) -> None:
        self.channels, self.parts = x.shape[1], parts
        self.rows = x.numel() // (self.channels * parts)
        """Number of rows in a part."""
        self.columns = min(MOST_CHANNELS, triton.next_power_of_2(self.channels))
        self.shape = {"ROWS": VALUES // self.columns, "COLUMNS": self.columns, "num_warps": WARPS}
        self.across = triton.cdiv(self.channels, self.columns)
        self.down = triton.cdiv(self.rows, VALUES // self.columns)

    def launch(self, kernel: Any, down: int, *arguments: Any, **options: Any) -> None:
        """Launch `down` programs for each part and each group of `columns` channels."""
        kernel[(down, self.across, self.parts)](*arguments, self.rows, self.channels, **self.shape, **options)


def normalise(x: Tensor, by: Figures, relu: bool) -> Tensor:
    x = channels_last(x)
    result = torch.empty_like(x)
    table = Table(x, len(by.mean))
    table.launch(forward, table.down, x, result, *by, RELU=relu)
    return result


def gradient_sums(gradient: Tensor, x: Tensor, by: Figures, relu: bool) -> Tensor:
    x, gradient = channels_last(x), channels_last(gradient)
    table = Table(x, len(by.mean))
    down = min(table.down, triton.cdiv(PROGRAMS, table.across * table.parts))
    sums = by.mean.new_empty(down, table.parts, 2, table.channels)
    table.launch(sum_up, down, gradient, x, sums, *by, triton.cdiv(table.down, down), RELU=relu)
    return sums.sum(0)


def input_gradient(gradient: Tensor, x: Tensor, by: Figures, means: Tensor, relu: bool) -> Tensor:
    x, gradient = channels_last(x), channels_last(gradient)
    d_x = torch.empty_like(x)
    table = Table(x, len(by.mean))
    table.launch(backward, table.down, gradient, x, d_x, *by, means, RELU=relu)
    return d_x


def channels_last(x: Tensor) -> Tensor:
    """Convert to channels-last, the layout in training; copies only if necessary."""
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


@triton.jit
def figures(
    mean: tl.tensor, variance: tl.tensor, weight: tl.tensor, bias: tl.tensor, eps: tl.tensor,
    channels: tl.tensor, COLUMNS: tl.constexpr,
) -> Any:  # fmt: skip
    """(channel, inside, mean, 1/√(variance + ε), weight, bias) for this program's columns and part."""
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < channels
    place = tl.program_id(2) * channels + channel
    scale = tl.rsqrt(tl.load(variance + place, mask=inside, other=1.0) + eps)
    return (
        channel, inside, tl.load(mean + place, mask=inside, other=0.0), scale,
        tl.load(weight + place, mask=inside, other=0.0), tl.load(bias + place, mask=inside, other=0.0),
    )  # fmt: skip


@triton.jit
def cells(
    tile: tl.tensor, channel: tl.tensor, inside: tl.tensor, rows: tl.tensor, channels: tl.tensor,
    ROWS: tl.constexpr,
) -> Any:  # fmt: skip
    """Offsets [ROWS,COLUMNS] of a tile in this program's part, and a mask of those inside the table."""
    row = tile * ROWS + tl.arange(0, ROWS)
    first = (tl.program_id(2) * rows).to(tl.int64)
    return (first + row)[:, None] * channels + channel[None, :], (row < rows)[:, None] & inside[None, :]


@triton.jit
def forward(
    x: tl.tensor, result: tl.tensor,
    mean: tl.tensor, variance: tl.tensor, weight: tl.tensor, bias: tl.tensor, eps: tl.tensor,
    rows: tl.tensor, channels: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RELU: tl.constexpr,
) -> None:  # fmt: skip
    """Normalise one tile."""
    channel, inside, mu, scale, w, b = figures(mean, variance, weight, bias, eps, channels, COLUMNS)
    cell, there = cells(tl.program_id(0), channel, inside, rows, channels, ROWS)
    values = tl.load(x + cell, mask=there, other=0.0).to(tl.float32)
    normed = (values - mu[None, :]) * scale[None, :] * w[None, :] + b[None, :]
    if RELU:
        normed = tl.where(normed < 0.0, 0.0, normed)  # unlike maximum, keeps NaN
    tl.store(result + cell, normed.to(result.dtype.element_ty), mask=there)


@triton.jit
def load_both(
    gradient: tl.tensor, x: tl.tensor, cell: tl.tensor, there: tl.tensor,
    mu: tl.tensor, scale: tl.tensor, w: tl.tensor, b: tl.tensor, RELU: tl.constexpr,
) -> Any:  # fmt: skip
    """(gradient of the norm's output, normed values) of a tile, both float32."""
    values = tl.load(x + cell, mask=there, other=0.0).to(tl.float32)
    arriving = tl.load(gradient + cell, mask=there, other=0.0).to(tl.float32)
    normed = (values - mu[None, :]) * scale[None, :]
    if RELU:
        arriving = tl.where(normed * w[None, :] + b[None, :] <= 0.0, 0.0, arriving)
    return arriving, normed


@triton.jit
def sum_up(
    gradient: tl.tensor, x: tl.tensor, sums: tl.tensor,
    mean: tl.tensor, variance: tl.tensor, weight: tl.tensor, bias: tl.tensor, eps: tl.tensor,
    tiles: tl.tensor, rows: tl.tensor, channels: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RELU: tl.constexpr,
) -> None:  # fmt: skip
    """Sum over this program's tiles, which are consecutive rows of tiles."""
    channel, inside, mu, scale, w, b = figures(mean, variance, weight, bias, eps, channels, COLUMNS)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    gradients = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0) * tiles, (tl.program_id(0) + 1) * tiles):
        cell, there = cells(tile, channel, inside, rows, channels, ROWS)
        arriving, normed = load_both(gradient, x, cell, there, mu, scale, w, b, RELU)
        products += arriving * normed
        gradients += arriving
    place = sums + (tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)) * 2 * channels + channel
    tl.store(place, tl.sum(products, axis=0), mask=inside)
    tl.store(place + channels, tl.sum(gradients, axis=0), mask=inside)


@triton.jit
def backward(
    gradient: tl.tensor, x: tl.tensor, d_x: tl.tensor,
    mean: tl.tensor, variance: tl.tensor, weight: tl.tensor, bias: tl.tensor, eps: tl.tensor,
    means: tl.tensor, rows: tl.tensor, channels: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RELU: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the input gradient of one tile."""
    channel, inside, mu, scale, w, b = figures(mean, variance, weight, bias, eps, channels, COLUMNS)
    place = means + tl.program_id(2) * 2 * channels + channel
    product = tl.load(place, mask=inside, other=0.0)
    mean_gradient = tl.load(place + channels, mask=inside, other=0.0)
    cell, there = cells(tl.program_id(0), channel, inside, rows, channels, ROWS)
    arriving, normed = load_both(gradient, x, cell, there, mu, scale, w, b, RELU)
    change = (arriving - mean_gradient[None, :] - normed * product[None, :]) * (w * scale)[None, :]
    tl.store(d_x + cell, change.to(d_x.dtype.element_ty), mask=there)
