"""Shared parts of the face kernels: a face is divided into tiles, whose programs exchange sums.

Whitening needs sums over the whole face before its first output. A face does not fit into the registers of
one program, and reading it twice would double the memory traffic. Therefore each program reads its tile once,
keeps it in registers, writes the tile's sums, waits for the sums of all other tiles of the face, and
continues.

No program waits for one that has not started: programs take tiles by ticket, in the order in which they
start, so all tiles of a face are taken before those of the next face. All tiles of one face must fit on the
device at once. Larger faces, and the interpreter, which runs programs sequentially, use two launches without
waiting: the second launch reads the sums of the first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparface.kernels.dispatch import interpreted

MOST_TILES = 64


def most_tiles(device: torch.device) -> int:
    """Maximum number of programs that wait for each other, limited by the device's multiprocessors.

    A multiprocessor holds two programs; a slice of a GPU has few multiprocessors.
    """
    if device.type != "cuda":
        return MOST_TILES
    return min(MOST_TILES, torch.cuda.get_device_properties(device).multi_processor_count)


class Tiles:
    """Divides faces [B,3,H,W] into tiles of `block` pixels and launches kernels on them."""

    def __init__(self, x: Tensor, block: int, sums: int) -> None:
        batch, _, height, width = x.shape
        self.pixels, self.width, self.block = height * width, width, block
        self.count = triton.cdiv(self.pixels, block)
        self.grid = (batch * self.count,)
        self.sums = x.new_empty((batch, self.count, sums), dtype=torch.float32)
        self.shape = {"TILES": self.count, "ALL": triton.next_power_of_2(self.count), "BLOCK": block}

    def launch(self, kernel: Any, *arguments: Any, warps: int) -> None:
        """Launch a kernel whose first arguments are the sums, counters, number of pixels and width."""
        apart = self.count > 1 and (interpreted() or self.count > most_tiles(self.sums.device))
        for _ in range(2 if apart else 1):
            # the ticket counter, then the number of finished tiles per face
            counters = self.sums.new_zeros(1 + len(self.sums), dtype=torch.int32)
            kernel[self.grid](
                self.sums, counters, self.pixels, self.width, *arguments,
                **self.shape, WAIT=not apart, num_warps=warps,
            )  # fmt: skip


def strides(x: Tensor) -> tuple[int, int, int, int]:
    """The strides of image, channel, row and column, in elements."""
    image, channel, row, column = x.stride()
    return image, channel, row, column


@triton.jit
def take_tile(counters: tl.tensor, TILES: tl.constexpr) -> Any:
    """Take a ticket; returns the (face, tile) of this program."""
    ticket = tl.atomic_add(counters, 1, sem="relaxed")
    return ticket // TILES, ticket % TILES


@triton.jit
def pixels_of(tile: tl.tensor, pixels: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr) -> Any:
    """Row, column and index of the tile's pixels, and a mask of those inside the face."""
    pixel = tile * BLOCK + tl.arange(0, BLOCK)
    return pixel // width, pixel % width, pixel, pixel < pixels


@triton.jit
def load(pointer: tl.tensor, offsets: tl.tensor, inside: tl.tensor) -> Any:
    """Load values as float32; bytes are scaled to [0,1]."""
    values = tl.load(pointer + offsets, mask=inside, other=0)
    if pointer.dtype.element_ty == tl.uint8:
        return values.to(tl.float32) / 255.0
    return values.to(tl.float32)


@triton.jit
def load_colours(pointer: tl.tensor, offsets: tl.tensor, stride: tl.tensor, inside: tl.tensor) -> Any:
    """Load three channels of the tile's pixels."""
    return (
        load(pointer, offsets, inside),
        load(pointer, offsets + stride, inside),
        load(pointer, offsets + 2 * stride, inside),
    )


@triton.jit
def store_colours(
    pointer: tl.tensor,
    offsets: tl.tensor,
    stride: tl.tensor,
    inside: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
) -> None:
    """Store three channels of the tile's pixels, rounded to the pointer's dtype."""
    tl.store(pointer + offsets, a.to(pointer.dtype.element_ty), mask=inside)
    tl.store(pointer + offsets + stride, b.to(pointer.dtype.element_ty), mask=inside)
    tl.store(pointer + offsets + 2 * stride, c.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def total(values: tl.tensor, inside: tl.tensor) -> Any:
    return tl.sum(tl.where(inside, values, 0.0))


@triton.jit
def moments(a: tl.tensor, b: tl.tensor, c: tl.tensor, inside: tl.tensor, count: tl.tensor) -> Any:
    """The mean of the tile's `count` values, and the sum of squared differences from it."""
    mean = total(a + b + c, inside) / count
    return mean, total((a - mean) * (a - mean) + (b - mean) * (b - mean) + (c - mean) * (c - mean), inside)


@triton.jit
def publish(
    sums: tl.tensor,
    face: tl.tensor,
    tile: tl.tensor,
    index: tl.constexpr,
    value: tl.tensor,
    TILES: tl.constexpr,
    SUMS: tl.constexpr,
) -> None:
    """Write one of the tile's sums."""
    tl.store(sums + (face * TILES + tile) * SUMS + index, value)


@triton.jit
def wait(counters: tl.tensor, face: tl.tensor, TILES: tl.constexpr) -> None:
    """Wait until all tiles of the face have published their sums."""
    tl.debug_barrier()  # this program's sums are written before it is counted
    ready = tl.atomic_add(counters + 1 + face, 1, sem="acq_rel") + 1
    while ready < TILES:
        ready = tl.atomic_add(counters + 1 + face, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def gather(
    sums: tl.tensor,
    face: tl.tensor,
    index: tl.constexpr,
    TILES: tl.constexpr,
    ALL: tl.constexpr,
    SUMS: tl.constexpr,
) -> Any:
    """Load one of the sums for all tiles of the face, in a fixed order; 0 beyond the last tile."""
    tile = tl.arange(0, ALL)
    # bypass the L1 cache, which may be stale
    return tl.load(
        sums + (face * TILES + tile) * SUMS + index, mask=tile < TILES, other=0.0, cache_modifier=".cg"
    )


@triton.jit
def values_per_tile(pixels: tl.tensor, ALL: tl.constexpr, BLOCK: tl.constexpr) -> Any:
    """The number of values (three per pixel) in each tile of a face; 0 beyond the last tile."""
    return 3.0 * tl.minimum(tl.maximum(pixels - tl.arange(0, ALL) * BLOCK, 0), BLOCK).to(tl.float32)


@triton.jit
def combine(means: tl.tensor, squares: tl.tensor, counts: tl.tensor, pixels: tl.tensor) -> Any:
    """Mean and variance of a face from its tiles' moments, numerically stable (Chan et al. 1979)."""
    mean = tl.sum(means * counts) / (3.0 * pixels)
    return mean, tl.sum(squares + counts * (means - mean) * (means - mean)) / (3.0 * pixels)
