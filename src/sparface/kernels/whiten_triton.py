"""`whiten` in Triton: a single pass each for forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparface.kernels.common import variance_floor
from sparface.kernels.tiles_triton import (
    Tiles,
    combine,
    gather,
    load,
    load_colours,
    moments,
    pixels_of,
    publish,
    store_colours,
    strides,
    take_tile,
    total,
    values_per_tile,
    wait,
)

BLOCK, WARPS = 2048, 8
"""Pixels and warps per program: backward keeps 6 values per pixel, in 48 registers per thread."""


class Whiten(torch.autograd.Function):
    """Returns whitened faces, channels-last. Saves the input and two numbers per face for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        whitened = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
        figures = x.new_empty((2, len(x)), dtype=torch.float32)
        Tiles(x, BLOCK, sums=2).launch(
            forward, x, whitened, figures, len(x), variance_floor(x), *strides(x), warps=WARPS
        )
        ctx.save_for_backward(x, *figures.unbind())
        return whitened

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, mean, variance = ctx.saved_tensors
        d_x = torch.empty_like(x)
        Tiles(x, BLOCK, sums=2).launch(
            backward, x, gradients[0], mean, variance, d_x, variance_floor(x),
            *strides(x), *strides(gradients[0]), *strides(d_x), warps=WARPS,
        )  # fmt: skip
        return d_x, None


@triton.jit
def forward(
    sums: tl.tensor, counters: tl.tensor, pixels: tl.tensor, width: tl.tensor,
    x: tl.tensor, whitened: tl.tensor, figures: tl.tensor, batch: tl.tensor, floor: tl.tensor,
    x_image: tl.tensor, x_channel: tl.tensor, x_row: tl.tensor, x_column: tl.tensor,
    TILES: tl.constexpr, ALL: tl.constexpr, BLOCK: tl.constexpr, WAIT: tl.constexpr,
) -> None:  # fmt: skip
    """Whiten one tile of a face.

    Values are relative to the face's first value, so the variance of a constant face is exactly zero.
    """
    face, tile = take_tile(counters, TILES)
    row, column, pixel, inside = pixels_of(tile, pixels, width, BLOCK)
    image = face.to(tl.int64)
    first = load(x, image * x_image, True)
    x0, x1, x2 = load_colours(x + image * x_image, row * x_row + column * x_column, x_channel, inside)
    x0, x1, x2 = x0 - first, x1 - first, x2 - first
    mean, squares = moments(x0, x1, x2, inside, 3.0 * tl.minimum(pixels - tile * BLOCK, BLOCK))
    publish(sums, face, tile, 0, mean, TILES, 2)
    publish(sums, face, tile, 1, squares, TILES, 2)
    if WAIT:
        wait(counters, face, TILES)
    means, squares = gather(sums, face, 0, TILES, ALL, 2), gather(sums, face, 1, TILES, ALL, 2)
    mean, variance = combine(means, squares, values_per_tile(pixels, ALL, BLOCK), pixels)
    if tile == 0:
        tl.store(figures + face, mean)
        tl.store(figures + batch + face, variance)
    gain = tl.rsqrt(tl.maximum(variance, floor))
    store_whitened(whitened + image * pixels * 3, pixel, inside, x0, x1, x2, mean, gain)


@triton.jit
def store_whitened(
    face: tl.tensor, pixel: tl.tensor, inside: tl.tensor,
    a: tl.tensor, b: tl.tensor, c: tl.tensor, mean: tl.tensor, gain: tl.tensor,
) -> None:  # fmt: skip
    """Whiten three channels of a tile's pixels and store them in a channels-last face."""
    store_colours(face, 3 * pixel, 1, inside, (a - mean) * gain, (b - mean) * gain, (c - mean) * gain)


@triton.jit
def backward(
    sums: tl.tensor, counters: tl.tensor, pixels: tl.tensor, width: tl.tensor,
    x: tl.tensor, gradient: tl.tensor, means: tl.tensor, variances: tl.tensor, d_x: tl.tensor,
    floor: tl.tensor,
    x_image: tl.tensor, x_channel: tl.tensor, x_row: tl.tensor, x_column: tl.tensor,
    g_image: tl.tensor, g_channel: tl.tensor, g_row: tl.tensor, g_column: tl.tensor,
    dx_image: tl.tensor, dx_channel: tl.tensor, dx_row: tl.tensor, dx_column: tl.tensor,
    TILES: tl.constexpr, ALL: tl.constexpr, BLOCK: tl.constexpr, WAIT: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the gradient for one tile of a face."""
    face, tile = take_tile(counters, TILES)
    row, column, _, inside = pixels_of(tile, pixels, width, BLOCK)
    image = face.to(tl.int64)
    variance = tl.load(variances + face)
    mean, gain = tl.load(means + face) + load(x, image * x_image, True), tl.rsqrt(tl.maximum(variance, floor))
    x0, x1, x2 = load_colours(x + image * x_image, row * x_row + column * x_column, x_channel, inside)
    g0, g1, g2 = load_colours(gradient + image * g_image, row * g_row + column * g_column, g_channel, inside)
    w0, w1, w2 = (x0 - mean) * gain, (x1 - mean) * gain, (x2 - mean) * gain
    publish(sums, face, tile, 0, total(g0 + g1 + g2, inside), TILES, 2)
    publish(sums, face, tile, 1, total(g0 * w0 + g1 * w1 + g2 * w2, inside), TILES, 2)
    if WAIT:
        wait(counters, face, TILES)
    g_mean = tl.sum(gather(sums, face, 0, TILES, ALL, 2)) / (3.0 * pixels)
    g_slope = tl.sum(gather(sums, face, 1, TILES, ALL, 2)) / (3.0 * pixels)
    g_slope = tl.where(variance >= floor, g_slope, 0.0)
    g0 = unwhiten(g0, w0, g_mean, g_slope, gain)
    g1 = unwhiten(g1, w1, g_mean, g_slope, gain)
    g2 = unwhiten(g2, w2, g_mean, g_slope, gain)
    store_colours(d_x + image * dx_image, row * dx_row + column * dx_column, dx_channel, inside, g0, g1, g2)


@triton.jit
def unwhiten(
    gradient: tl.tensor, whitened: tl.tensor, mean: tl.tensor, slope: tl.tensor, gain: tl.tensor
) -> Any:
    """The gradient before whitening; `mean` and `slope` are the face's means of g and g·whitened."""
    return (gradient - mean - whitened * slope) * gain
