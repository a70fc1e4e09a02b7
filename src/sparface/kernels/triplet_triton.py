"""`triplet` in Triton: distances stay in registers, and gradients are added in place.

Each program compares a few anchors with all other faces, one tile at a time. `semi_hard` compares every
distance with those of a few positives per anchor; more positives require further rounds. The gradients of
positives and negatives are added with atomics, so their last bits differ between runs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparface.kernels.common import Identities, Mining

TILE = {"ANCHORS": 16, "OTHERS": 64, "DEPTH": 16, "POSITIVES": 4, "num_warps": 8}
"""Anchors, other faces and components per tile, and positives per anchor and round."""


def violations(
    anchors: Tensor, others: Tensor, who: Identities, margin: float, mining: Mining, gradients: list[Tensor]
) -> Tensor:
    """As `triplet.violations_by_torch`. Extra memory: a few numbers per face."""
    of_anchors, of_others = (gradients[0], gradients[-1]) if gradients else (anchors, others)
    grid = (triton.cdiv(len(anchors), TILE["ANCHORS"]),)
    losses = anchors.new_empty(grid, dtype=torch.float32)
    kernel = batch_hard if mining == "batch_hard" else semi_hard
    kernel[grid](
        anchors, others, squares(anchors), squares(others), *who, losses, of_anchors, of_others,
        len(anchors), len(others), anchors.shape[1], margin, *anchors.stride(), *others.stride(),
        *of_anchors.stride(), *of_others.stride(), GRADIENT=bool(gradients), **TILE,
    )  # fmt: skip
    return losses.sum()


def squares(embeddings: Tensor) -> Tensor:
    """Squared norms [N], float32, without copying the embeddings."""
    lengths: Tensor = torch.linalg.vector_norm(embeddings, dim=1, dtype=torch.float32)
    return lengths.square()


@triton.jit
def semi_hard(
    anchors: tl.tensor, others: tl.tensor, a_squares: tl.tensor, o_squares: tl.tensor, labels: tl.tensor,
    o_labels: tl.tensor, itself: tl.tensor, order: tl.tensor, starts: tl.tensor, ends: tl.tensor,
    losses: tl.tensor, of_anchors: tl.tensor, of_others: tl.tensor, count: tl.tensor, faces: tl.tensor,
    size: tl.tensor, margin: tl.tensor, a_row: tl.tensor, a_column: tl.tensor, o_row: tl.tensor,
    o_column: tl.tensor, ga_row: tl.tensor, ga_column: tl.tensor, go_row: tl.tensor, go_column: tl.tensor,
    GRADIENT: tl.constexpr, ANCHORS: tl.constexpr, OTHERS: tl.constexpr, DEPTH: tl.constexpr,
    POSITIVES: tl.constexpr,
) -> None:  # fmt: skip
    """The loss of some anchors' pairs with the nearest negative beyond the positive, or the furthest."""
    anchor = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    inside = anchor < count
    label = tl.load(labels + anchor, mask=inside, other=0)
    own = tl.load(itself + anchor, mask=inside, other=-1)
    start = tl.load(starts + anchor, mask=inside, other=0)
    end = tl.load(ends + anchor, mask=inside, other=0)
    rows = anchor.to(tl.int64)
    loss = tl.zeros((ANCHORS,), tl.float32)
    for first in range(0, tl.max(end - start), POSITIVES):
        positive, paired = positives_of(own, inside, order, start + first, end, POSITIVES)
        near = pair_distances(
            anchors, others, rows, positive, size, a_row, a_column, o_row, o_column, inside, paired, DEPTH
        )
        least = tl.full((ANCHORS, POSITIVES), float("inf"), tl.float32)
        nearest = tl.zeros((ANCHORS, POSITIVES), tl.int32)
        most = tl.full((ANCHORS,), -1.0, tl.float32)
        furthest = tl.zeros((ANCHORS,), tl.int32)
        for begin in range(0, faces, OTHERS):
            other = begin + tl.arange(0, OTHERS)
            distances = tile_distances(
                anchors, others, a_squares, o_squares, rows, inside, other, size, faces,
                a_row, a_column, o_row, o_column, ANCHORS, OTHERS, DEPTH,
            )  # fmt: skip
            same = tl.load(o_labels + other, mask=other < faces, other=0)[None, :] == label[:, None]
            negative = (other[None, :] < faces) & (same == 0)
            of_negatives = tl.where(negative, distances, -1.0)
            most, furthest = keep_furthest(of_negatives, other, most, furthest)
            least, nearest = keep_nearest(of_negatives, other, near, least, nearest, faces)
        found = least < float("inf")
        far = tl.where(found, least, most[:, None])
        violation = near - far + margin
        active = paired & (most[:, None] >= 0) & (violation > 0)
        loss += tl.sum(tl.where(active, violation, 0.0), 1)
        if GRADIENT:
            chosen = tl.where(found, nearest, furthest[:, None])
            add_gradients(
                anchors, others, of_anchors, of_others, rows, positive, chosen, active, size,
                a_row, a_column, o_row, o_column, ga_row, ga_column, go_row, go_column, DEPTH,
            )  # fmt: skip
    tl.store(losses + tl.program_id(0), tl.sum(loss))


@triton.jit
def positives_of(
    own: tl.tensor, inside: tl.tensor, order: tl.tensor, start: tl.tensor, end: tl.tensor,
    POSITIVES: tl.constexpr,
) -> Any:  # fmt: skip
    """Faces of each anchor's identity from `start` in the order, and their mask, which leaves out the anchor
    itself; [ANCHORS, POSITIVES]."""
    place = start[:, None] + tl.arange(0, POSITIVES)[None, :]
    paired = inside[:, None] & (place < end[:, None])
    positive = tl.load(order + place, mask=paired, other=0)
    return positive, paired & (positive != own[:, None])


@triton.jit
def keep_furthest(negatives: tl.tensor, other: tl.tensor, most: tl.tensor, furthest: tl.tensor) -> Any:
    """Update the distance and index of each anchor's furthest negative [ANCHORS] with one more tile."""
    value = tl.max(negatives, 1)
    place = tl.max(tl.where(negatives == value[:, None], other[None, :], -1), 1)
    furthest = tl.where(value >= most, place, furthest)  # the last of equals
    return tl.maximum(value, most), furthest


@triton.jit
def keep_nearest(
    negatives: tl.tensor, other: tl.tensor, near: tl.tensor,
    least: tl.tensor, nearest: tl.tensor, faces: tl.tensor,
) -> Any:  # fmt: skip
    """Update distance and index of the nearest negative beyond each positive [ANCHORS, POSITIVES]."""
    deep = negatives[:, None, :]
    beyond = tl.where(deep > near[:, :, None], deep, float("inf"))
    closest = tl.min(beyond, 2)
    spot = tl.min(tl.where(beyond == closest[:, :, None], other[None, None, :], faces), 2)
    nearest = tl.where(closest < least, spot, nearest)  # the first of equals
    return tl.minimum(closest, least), nearest


@triton.jit
def batch_hard(
    anchors: tl.tensor, others: tl.tensor, a_squares: tl.tensor, o_squares: tl.tensor, labels: tl.tensor,
    o_labels: tl.tensor, itself: tl.tensor, order: tl.tensor, starts: tl.tensor, ends: tl.tensor,
    losses: tl.tensor, of_anchors: tl.tensor, of_others: tl.tensor, count: tl.tensor, faces: tl.tensor,
    size: tl.tensor, margin: tl.tensor, a_row: tl.tensor, a_column: tl.tensor, o_row: tl.tensor,
    o_column: tl.tensor, ga_row: tl.tensor, ga_column: tl.tensor, go_row: tl.tensor, go_column: tl.tensor,
    GRADIENT: tl.constexpr, ANCHORS: tl.constexpr, OTHERS: tl.constexpr, DEPTH: tl.constexpr,
    POSITIVES: tl.constexpr,
) -> None:  # fmt: skip
    """The loss of some anchors with their furthest positive and nearest negative."""
    anchor = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    inside = anchor < count
    label = tl.load(labels + anchor, mask=inside, other=0)
    own = tl.load(itself + anchor, mask=inside, other=-1)
    rows = anchor.to(tl.int64)
    near = tl.full((ANCHORS,), -1.0, tl.float32)
    far = tl.full((ANCHORS,), float("inf"), tl.float32)
    positive = tl.zeros((ANCHORS,), tl.int32)
    negative = tl.zeros((ANCHORS,), tl.int32)
    for begin in range(0, faces, OTHERS):
        other = begin + tl.arange(0, OTHERS)
        distances = tile_distances(
            anchors, others, a_squares, o_squares, rows, inside, other, size, faces,
            a_row, a_column, o_row, o_column, ANCHORS, OTHERS, DEPTH,
        )  # fmt: skip
        same = tl.load(o_labels + other, mask=other < faces, other=0)[None, :] == label[:, None]
        paired = same & (other[None, :] < faces) & (other[None, :] != own[:, None])
        of_positives = tl.where(paired, distances, -1.0)
        value = tl.max(of_positives, 1)
        spot = tl.min(tl.where(of_positives == value[:, None], other[None, :], faces), 1)
        positive = tl.where(value > near, spot, positive)  # the first of equals
        near = tl.maximum(value, near)
        of_negatives = tl.where((other[None, :] < faces) & (same == 0), distances, float("inf"))
        value = tl.min(of_negatives, 1)
        spot = tl.min(tl.where(of_negatives == value[:, None], other[None, :], faces), 1)
        negative = tl.where(value < far, spot, negative)
        far = tl.minimum(value, far)
    violation = near - far + margin
    active = inside & (near >= 0) & (far < float("inf")) & (violation > 0)
    if GRADIENT:
        add_gradients(
            anchors, others, of_anchors, of_others, rows, positive[:, None], negative[:, None],
            active[:, None], size, a_row, a_column, o_row, o_column, ga_row, ga_column, go_row, go_column,
            DEPTH,
        )  # fmt: skip
    tl.store(losses + tl.program_id(0), tl.sum(tl.where(active, violation, 0.0)))


@triton.jit
def tile_distances(
    anchors: tl.tensor, others: tl.tensor, a_squares: tl.tensor, o_squares: tl.tensor,
    rows: tl.tensor, inside: tl.tensor, other: tl.tensor, size: tl.tensor, faces: tl.tensor,
    a_row: tl.tensor, a_column: tl.tensor, o_row: tl.tensor, o_column: tl.tensor,
    ANCHORS: tl.constexpr, OTHERS: tl.constexpr, DEPTH: tl.constexpr,
) -> Any:  # fmt: skip
    """Squared distances [ANCHORS, OTHERS], clamped at 0."""
    product = tl.zeros((ANCHORS, OTHERS), tl.float32)
    columns = other.to(tl.int64)
    for begin in range(0, size, DEPTH):
        part = begin + tl.arange(0, DEPTH)
        mask_a = inside[:, None] & (part[None, :] < size)
        mask_o = (columns[None, :] < faces) & (part[:, None] < size)
        a = values(anchors + rows[:, None] * a_row + part[None, :] * a_column, mask_a)
        o = values(others + columns[None, :] * o_row + part[:, None] * o_column, mask_o)
        product = tl.dot(a, o, product, input_precision="ieee")
    of_rows = tl.load(a_squares + rows, mask=inside, other=0.0)
    of_columns = tl.load(o_squares + columns, mask=columns < faces, other=0.0)
    return tl.maximum(of_rows[:, None] + of_columns[None, :] - 2.0 * product, 0.0)


@triton.jit
def pair_distances(
    anchors: tl.tensor, others: tl.tensor, rows: tl.tensor, positive: tl.tensor, size: tl.tensor,
    a_row: tl.tensor, a_column: tl.tensor, o_row: tl.tensor, o_column: tl.tensor,
    inside: tl.tensor, paired: tl.tensor, DEPTH: tl.constexpr,
) -> Any:  # fmt: skip
    """Squared distances [anchors, positives], infinite where there is no pair."""
    distances = tl.zeros(positive.shape, tl.float32)
    for begin in range(0, size, DEPTH):
        part = begin + tl.arange(0, DEPTH)
        mask = inside[:, None] & (part[None, :] < size)
        a = values(anchors + rows[:, None] * a_row + part[None, :] * a_column, mask)
        spots = others + positive.to(tl.int64)[:, :, None] * o_row + part[None, None, :] * o_column
        p = values(spots, paired[:, :, None] & (part < size)[None, None, :])
        distances += tl.sum((a[:, None, :] - p) * (a[:, None, :] - p), 2)
    return tl.where(paired, distances, float("inf"))


@triton.jit
def add_gradients(
    anchors: tl.tensor, others: tl.tensor, of_anchors: tl.tensor, of_others: tl.tensor,
    rows: tl.tensor, positive: tl.tensor, negative: tl.tensor, active: tl.tensor, size: tl.tensor,
    a_row: tl.tensor, a_column: tl.tensor, o_row: tl.tensor, o_column: tl.tensor,
    ga_row: tl.tensor, ga_column: tl.tensor, go_row: tl.tensor, go_column: tl.tensor, DEPTH: tl.constexpr,
) -> None:  # fmt: skip
    """Add gradients of active triplets [anchors, positives]: a 2(n − p), p 2(p − a), n 2(a − n)."""
    some = tl.max(active.to(tl.int32), 1) > 0
    p_row, n_row = positive.to(tl.int64)[:, :, None], negative.to(tl.int64)[:, :, None]
    for begin in range(0, size, DEPTH):
        part = begin + tl.arange(0, DEPTH)
        of_row = some[:, None] & (part[None, :] < size)
        mask = active[:, :, None] & (part < size)[None, None, :]
        deep = part[None, None, :]
        a = values(anchors + rows[:, None] * a_row + part[None, :] * a_column, of_row)
        p = values(others + p_row * o_row + deep * o_column, mask)
        n = values(others + n_row * o_row + deep * o_column, mask)
        of_a = of_anchors + rows[:, None] * ga_row + part[None, :] * ga_column
        of_p = of_others + p_row * go_row + deep * go_column
        of_n = of_others + n_row * go_row + deep * go_column
        tl.atomic_add(of_a, 2.0 * tl.sum(n - p, 1), mask=of_row, sem="relaxed")
        tl.atomic_add(of_p, 2.0 * (p - a[:, None, :]), mask=mask, sem="relaxed")
        tl.atomic_add(of_n, 2.0 * (a[:, None, :] - n), mask=mask, sem="relaxed")


@triton.jit
def values(place: tl.tensor, mask: tl.tensor) -> Any:
    """Load values as float32; 0 outside the mask."""
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)
