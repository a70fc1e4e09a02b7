"""`synthesize_whitened` in Triton: forward and backward read each face, perturbation and mask once."""

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
from sparface.kernels.whiten_triton import store_whitened, unwhiten

BLOCK, WARPS = 1024, 8
"""Pixels and warps per program: backward keeps 10 values per pixel, in 40 registers per thread."""


class Synthesize(torch.autograd.Function):
    """Returns the fields of `Synthesized`. Saves the inputs and four numbers per face for backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, perturbation: Tensor, mask: Tensor, epsilon: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, channels, height, width = x.shape
        shape = (2 * batch, channels, height, width)
        whitened = torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
        figures = x.new_empty((5, batch), dtype=torch.float32)
        Tiles(x, BLOCK, sums=7).launch(
            forward, x, perturbation, mask, whitened, figures, batch, epsilon, variance_floor(x),
            *strides(x), *strides(perturbation), *strides(mask), warps=WARPS,
        )  # fmt: skip
        norm, area, applied, mean, variance = figures.unbind()
        ctx.save_for_backward(x, perturbation, mask, norm, mean, variance)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(applied)
        return whitened, norm, area, applied

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, perturbation, mask, norm, mean, variance = ctx.saved_tensors
        of_face = gradients[0][len(x) :]
        d_perturbation, d_mask = torch.empty_like(perturbation), torch.empty_like(mask)
        Tiles(x, BLOCK, sums=2).launch(
            backward, x, perturbation, mask, of_face, gradients[1].contiguous(), gradients[2].contiguous(),
            norm, mean, variance, d_perturbation, d_mask, ctx.epsilon, variance_floor(x),
            *strides(x), *strides(perturbation), *strides(mask),
            *strides(of_face), *strides(d_perturbation), *strides(d_mask), warps=WARPS,
        )  # fmt: skip
        return None, d_perturbation, d_mask, None, None


@triton.jit
def forward(
    sums: tl.tensor, counters: tl.tensor, pixels: tl.tensor, width: tl.tensor,
    x: tl.tensor, delta: tl.tensor, mask: tl.tensor, whitened: tl.tensor, figures: tl.tensor,
    batch: tl.tensor, epsilon: tl.tensor, floor: tl.tensor,
    x_image: tl.tensor, x_channel: tl.tensor, x_row: tl.tensor, x_column: tl.tensor,
    d_image: tl.tensor, d_channel: tl.tensor, d_row: tl.tensor, d_column: tl.tensor,
    m_image: tl.tensor, m_channel: tl.tensor, m_row: tl.tensor, m_column: tl.tensor,
    TILES: tl.constexpr, ALL: tl.constexpr, BLOCK: tl.constexpr, WAIT: tl.constexpr,
) -> None:  # fmt: skip
    """Write the whitened real and sparring face and the statistics for one tile of a face.

    Values are relative to the face's first value, so the variance of a constant face is exactly zero.
    """
    face, tile = take_tile(counters, TILES)
    row, column, pixel, inside = pixels_of(tile, pixels, width, BLOCK)
    image = face.to(tl.int64)
    first = load(x, image * x_image, True)
    x0, x1, x2 = load_colours(x + image * x_image, row * x_row + column * x_column, x_channel, inside)
    d0, d1, d2 = load_colours(delta + image * d_image, row * d_row + column * d_column, d_channel, inside)
    d0, d1, d2 = epsilon * d0, epsilon * d1, epsilon * d2
    m = load(mask + image * m_image, row * m_row + column * m_column, inside)
    c0, c1, c2 = d0 * m, d1 * m, d2 * m
    s0, s1, s2 = clip(x0 + c0) - first, clip(x1 + c1) - first, clip(x2 + c2) - first
    x0, x1, x2 = x0 - first, x1 - first, x2 - first
    count = 3.0 * tl.minimum(pixels - tile * BLOCK, BLOCK)
    x_mean, x_squares = moments(x0, x1, x2, inside, count)
    s_mean, s_squares = moments(s0, s1, s2, inside, count)
    publish(sums, face, tile, 0, x_mean, TILES, 7)
    publish(sums, face, tile, 1, x_squares, TILES, 7)
    publish(sums, face, tile, 2, s_mean, TILES, 7)
    publish(sums, face, tile, 3, s_squares, TILES, 7)
    publish(sums, face, tile, 4, total(c0 * c0 + c1 * c1 + c2 * c2, inside), TILES, 7)
    publish(sums, face, tile, 5, total(m, inside), TILES, 7)
    publish(sums, face, tile, 6, total(tl.abs(c0) + tl.abs(c1) + tl.abs(c2), inside), TILES, 7)
    if WAIT:
        wait(counters, face, TILES)
    counts = values_per_tile(pixels, ALL, BLOCK)
    x_means, x_all = gather(sums, face, 0, TILES, ALL, 7), gather(sums, face, 1, TILES, ALL, 7)
    s_means, s_all = gather(sums, face, 2, TILES, ALL, 7), gather(sums, face, 3, TILES, ALL, 7)
    x_mean, x_variance = combine(x_means, x_all, counts, pixels)
    s_mean, s_variance = combine(s_means, s_all, counts, pixels)
    if tile == 0:
        store_figures(figures, sums, face, batch, pixels, s_mean, s_variance, TILES, ALL)
    x_gain, s_gain = tl.rsqrt(tl.maximum(x_variance, floor)), tl.rsqrt(tl.maximum(s_variance, floor))
    real = whitened + image * pixels * 3
    sparring = whitened + (image + batch) * pixels * 3
    store_whitened(real, pixel, inside, x0, x1, x2, x_mean, x_gain)
    store_whitened(sparring, pixel, inside, s0, s1, s2, s_mean, s_gain)


@triton.jit
def store_figures(
    figures: tl.tensor, sums: tl.tensor, face: tl.tensor, batch: tl.tensor, pixels: tl.tensor,
    mean: tl.tensor, variance: tl.tensor, TILES: tl.constexpr, ALL: tl.constexpr,
) -> None:  # fmt: skip
    """Store a face's norm, area and mean change, then the mean and variance of its sparring face."""
    tl.store(figures + face, tl.sqrt(tl.sum(gather(sums, face, 4, TILES, ALL, 7))))
    tl.store(figures + batch + face, tl.sum(gather(sums, face, 5, TILES, ALL, 7)) / pixels)
    applied = tl.sum(gather(sums, face, 6, TILES, ALL, 7)) / (3.0 * pixels)
    tl.store(figures + 2 * batch + face, applied)
    tl.store(figures + 3 * batch + face, mean)
    tl.store(figures + 4 * batch + face, variance)


@triton.jit
def backward(
    sums: tl.tensor, counters: tl.tensor, pixels: tl.tensor, width: tl.tensor,
    x: tl.tensor, delta: tl.tensor, mask: tl.tensor,
    gradient: tl.tensor, norm_gradient: tl.tensor, area_gradient: tl.tensor,
    norms: tl.tensor, means: tl.tensor, variances: tl.tensor, d_delta: tl.tensor, d_mask: tl.tensor,
    epsilon: tl.tensor, floor: tl.tensor,
    x_image: tl.tensor, x_channel: tl.tensor, x_row: tl.tensor, x_column: tl.tensor,
    d_image: tl.tensor, d_channel: tl.tensor, d_row: tl.tensor, d_column: tl.tensor,
    m_image: tl.tensor, m_channel: tl.tensor, m_row: tl.tensor, m_column: tl.tensor,
    g_image: tl.tensor, g_channel: tl.tensor, g_row: tl.tensor, g_column: tl.tensor,
    dd_image: tl.tensor, dd_channel: tl.tensor, dd_row: tl.tensor, dd_column: tl.tensor,
    dm_image: tl.tensor, dm_channel: tl.tensor, dm_row: tl.tensor, dm_column: tl.tensor,
    TILES: tl.constexpr, ALL: tl.constexpr, BLOCK: tl.constexpr, WAIT: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the gradients of perturbation and mask for one tile: whitening, clip, norm and area."""
    face, tile = take_tile(counters, TILES)
    row, column, _, inside = pixels_of(tile, pixels, width, BLOCK)
    image = face.to(tl.int64)
    first = load(x, image * x_image, True)
    x0, x1, x2 = load_colours(x + image * x_image, row * x_row + column * x_column, x_channel, inside)
    d0, d1, d2 = load_colours(delta + image * d_image, row * d_row + column * d_column, d_channel, inside)
    d0, d1, d2 = epsilon * d0, epsilon * d1, epsilon * d2
    m = load(mask + image * m_image, row * m_row + column * m_column, inside)
    g0, g1, g2 = load_colours(gradient + image * g_image, row * g_row + column * g_column, g_channel, inside)
    variance = tl.load(variances + face)
    mean, gain = tl.load(means + face) + first, tl.rsqrt(tl.maximum(variance, floor))
    s0, s1, s2 = x0 + d0 * m, x1 + d1 * m, x2 + d2 * m
    w0, w1, w2 = (clip(s0) - mean) * gain, (clip(s1) - mean) * gain, (clip(s2) - mean) * gain
    publish(sums, face, tile, 0, total(g0 + g1 + g2, inside), TILES, 2)
    publish(sums, face, tile, 1, total(g0 * w0 + g1 * w1 + g2 * w2, inside), TILES, 2)
    if WAIT:
        wait(counters, face, TILES)
    g_mean = tl.sum(gather(sums, face, 0, TILES, ALL, 2)) / (3.0 * pixels)
    g_slope = tl.sum(gather(sums, face, 1, TILES, ALL, 2)) / (3.0 * pixels)
    g_slope = tl.where(variance >= floor, g_slope, 0.0)
    norm = tl.load(norms + face)
    pull = tl.where(norm > 0, tl.load(norm_gradient + face) / norm, 0.0)
    g0 = unwhiten(g0, w0, g_mean, g_slope, gain) * unclipped(s0)
    g1 = unwhiten(g1, w1, g_mean, g_slope, gain) * unclipped(s1)
    g2 = unwhiten(g2, w2, g_mean, g_slope, gain) * unclipped(s2)
    dm = g0 * d0 + g1 * d1 + g2 * d2
    dm += pull * m * (d0 * d0 + d1 * d1 + d2 * d2) + tl.load(area_gradient + face) / pixels
    place = d_mask + image * dm_image + row * dm_row + column * dm_column
    tl.store(place, dm.to(d_mask.dtype.element_ty), mask=inside)
    scale = epsilon * m
    g0, g1, g2 = scale * (g0 + pull * m * d0), scale * (g1 + pull * m * d1), scale * (g2 + pull * m * d2)
    store_colours(
        d_delta + image * dd_image, row * dd_row + column * dd_column, dd_channel, inside, g0, g1, g2
    )


@triton.jit
def clip(values: tl.tensor) -> Any:
    return tl.minimum(tl.maximum(values, 0.0), 1.0)


@triton.jit
def unclipped(values: tl.tensor) -> Any:
    """1 where the clip to [0,1] passes the gradient, else 0; includes the bounds, like torch's clamp."""
    return tl.where((values >= 0.0) & (values <= 1.0), 1.0, 0.0)
