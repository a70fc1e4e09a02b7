"""Triplet loss: distances, mining, loss and gradient, without a B×B matrix in memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparface.kernels.common import Identities, Mining, at_least_float32
from sparface.kernels.dispatch import fused

TABLE, TABLE_MOST = 1 << 20, 1 << 22
"""Bounds on the number of distances in memory at a time (4 and 16 MiB of float32); between them, it is the
number of components of all embeddings. Larger products are faster; a batch of 1,024 fits at once."""
RUN = 64
"""Number of columns that are reduced together in finding the position of a minimum."""


class Others(NamedTuple):
    """The faces that anchors are compared with."""

    embeddings: Tensor
    """[B,E]."""
    labels: Tensor
    """int64 [B]."""
    itself: Tensor | None = None
    """int64 [b], the row of each anchor among them; None if the anchors are other faces."""


def triplet(
    anchors: Tensor,
    labels: Tensor,
    margin: float = 0.2,
    mining: Mining = "semi_hard",
    others: Others | None = None,
) -> Tensor:
    """Triplet loss max(0, d(a,p) − d(a,n) + margin) on squared Euclidean distances (Schroff et al. 2015).

    Every row of `anchors` [b,E] is an anchor a. Positives p and negatives n are the `others` with the same
    and with other labels than the anchor's in `labels` [b]. By default, they are the anchors themselves. An
    anchor is not its own positive.

    `batch_hard` (Hermans et al. 2017): the furthest positive and the nearest negative of each anchor;
    the mean is over anchors that have both. `semi_hard`: for each pair (a, p) the nearest negative
    that is further than p, or the furthest negative if there is none; the mean is over all pairs whose
    anchor has a negative. If there are no such anchors or pairs, the loss is 0. Ties are resolved in favour
    of the first face, except for the furthest negative, where the last one is used.

    The anchors may be one of several equal parts that have the labels of `others` together. The loss of all
    parts is the mean of their results.
    """
    if others is None:
        others = Others(anchors, labels, torch.arange(len(labels), device=labels.device))
    apart = None if others.embeddings is anchors else others.embeddings
    who = identities(labels, others)
    of_all: Tensor = Violations.apply(anchors, apart, who, margin, mining)  # type: ignore[no-untyped-call]
    parts = len(others.labels) / len(labels)
    return of_all * parts / count(who, mining, among=others.itself is not None)


def identities(labels: Tensor, others: Others) -> Identities:
    order = others.labels.argsort(stable=True)
    ordered = others.labels[order]
    starts, ends = (torch.searchsorted(ordered, labels, right=right) for right in (False, True))
    itself = torch.full_like(labels, -1) if others.itself is None else others.itself
    return Identities(labels, others.labels, itself, order, starts, ends)


def count(who: Identities, mining: Mining, among: bool) -> Tensor:
    """The number of triplets if all of the other faces were anchors, at least 1; `among`: whether the anchors
    are among them."""
    ordered = who.others[who.order]
    sizes = torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(ordered, ordered)
    positives = (sizes - int(among)) * (sizes < len(sizes))
    return (positives.clamp(max=1) if mining == "batch_hard" else positives).sum().clamp(min=1)


class Violations(torch.autograd.Function):
    """The sum of the losses of all triplets. The gradient is computed in forward."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, apart: Tensor | None, who: Identities, margin: float, mining: Mining
    ) -> Tensor:
        given = [anchors] if apart is None else [anchors, apart]
        gradients = [at_least_float32(torch.zeros_like(x)) for x in given if any(ctx.needs_input_grad)]
        if fused(*given):
            from sparface.kernels.triplet_triton import violations
        else:
            violations = violations_by_torch
        total = violations(anchors, given[-1], who, margin, mining, gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in given]
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        made = [(g * gradients[0]).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return made[0], made[1] if len(made) > 1 else None, None, None, None


class Triplets(NamedTuple):
    """Mined triplets: indices [T] of anchor, positive and negative, and the two squared distances [T]."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    near: Tensor
    far: Tensor


def violations_by_torch(
    anchors: Tensor, others: Tensor, who: Identities, margin: float, mining: Mining, gradients: list[Tensor]
) -> Tensor:
    """Sum the losses, and add to the gradients of anchors and others, if there are any (one for both if they
    are the same). Computes the distances of some anchors at a time."""
    anchors, others = at_least_float32(anchors), at_least_float32(others)
    table, total = Table(anchors, others, who), anchors.new_zeros(())
    mine = {"batch_hard": batch_hard, "semi_hard": semi_hard}[mining]
    for begin in range(0, len(anchors), table.rows):
        for triplets, valid in mine(table, begin):
            violation = triplets.near - triplets.far + margin
            active = valid & (violation > 0)
            total += (violation * active).sum()
            if gradients:
                _add_gradient(gradients[0], gradients[-1], anchors, others, triplets, active)
    return total


class Table:
    """The distances from some anchors to all other faces, computed in reused memory."""

    def __init__(self, anchors: Tensor, others: Tensor, who: Identities) -> None:
        self.anchors, self.others, self.who = anchors, others, who
        self.anchor_squares, self.other_squares = anchors.square().sum(1), others.square().sum(1)
        width = RUN * math.ceil(len(others) / RUN)
        self.rows = rows_of(min(max(TABLE, others.numel()), TABLE_MOST), width, len(anchors))
        self.distances = anchors.new_full((self.rows, width), -1.0)
        self.scratch = anchors.new_empty((rows_of(TABLE, width, len(others)), width))

    def fill(self, begin: int) -> Tensor:
        """Compute the squared distances [rows, width] of the anchors from `begin`; −1 in padding columns."""
        rows = self.anchors[begin : begin + self.rows]
        distances = self.distances[: len(rows)]
        inside = distances[:, : len(self.others)]
        torch.addmm(self.other_squares[None, :], rows, self.others.T, alpha=-2, out=inside)
        inside.add_(self.anchor_squares[begin : begin + self.rows, None]).clamp_(min=0)
        return distances

    def same(self, begin: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The table rows and columns of all faces with the same identity as the row's anchor, row by row, and
        whether they are the anchor itself."""
        starts = self.who.starts[begin : begin + rows]
        counts = self.who.ends[begin : begin + rows] - starts
        row = torch.repeat_interleave(counts)
        first = starts - counts.cumsum(0) + counts
        column = self.who.order[first[row] + torch.arange(len(row), device=row.device)]
        return row, column, column == self.who.itself[begin + row]


Mined = list[tuple[Triplets, Tensor]]
"""Triplets, and which of them are valid."""


def rows_of(elements: int, width: int, most: int) -> int:
    """The number of rows of this width with a total of `elements` elements, between 1 and `most`."""
    return min(max(1, elements // width), most)


def batch_hard(table: Table, begin: int) -> Mined:
    """Mine one triplet per anchor in the table."""
    distances = table.fill(begin)
    rows = len(distances)
    row, column, itself = table.same(begin, rows)
    pairs = distances[row, column].masked_fill_(itself, -1)
    distances[row, column] = math.inf
    distances[:, len(table.others) :] = math.inf
    nearest, far = first_minimum(distances)
    distances[:, len(table.others) :] = -1
    near = pairs.new_full((rows,), -1.0).scatter_reduce_(0, row, pairs, "amax")
    place = torch.where(pairs == near[row], torch.arange(len(row), device=row.device), len(row))
    first = place.new_full((rows,), len(row)).scatter_reduce_(0, row, place, "amin")
    positive = column[first.clamp(max=len(row) - 1)]
    anchor = torch.arange(begin, begin + rows, device=row.device)
    valid = (near >= 0) & far.isfinite()
    return [(Triplets(anchor, positive, nearest, near, far.masked_fill(~valid, 0)), valid)]


def semi_hard(table: Table, begin: int) -> Mined:
    """Mine one triplet per pair of an anchor in the table and a positive, some pairs at a time."""
    distances = table.fill(begin)
    row, column, itself = table.same(begin, len(distances))
    pairs = distances[row, column]
    distances[row, column] = -1  # below all distances
    furthest, most = last_maximum(distances)
    relatives = (~itself).nonzero()[:, 0]
    row, column, pairs = row[relatives], column[relatives], pairs[relatives]
    mined = []
    some = len(table.scratch)
    for r, positive, near in zip(*(torch.split(t, some) for t in (row, column, pairs)), strict=True):
        beyond = torch.index_select(distances, 0, r, out=table.scratch[: len(r)])
        F.threshold(beyond.sub_(near[:, None]), 0.0, math.inf, inplace=True)
        nearest, least = first_minimum(beyond)
        negative = torch.where(least.isfinite(), nearest, furthest[r])
        far = torch.where(least.isfinite(), distances[r, negative], most[r])
        mined.append((Triplets(r + begin, positive, negative, near, far), most[r] >= 0))
    return mined


def first_minimum(table: Tensor) -> tuple[Tensor, Tensor]:
    """Column and value of each row's minimum (the first of equals); the width is a multiple of `RUN`."""
    runs = table.view(len(table), table.shape[1] // RUN, RUN)
    run = runs.amin(2).argmin(1)
    chosen = runs[torch.arange(len(run), device=run.device), run]
    value, column = chosen.min(1)
    return run * RUN + column, value


def last_maximum(table: Tensor) -> tuple[Tensor, Tensor]:
    """Column and value of each row's maximum (the last of equals); the width is a multiple of `RUN`."""
    runs = table.view(len(table), table.shape[1] // RUN, RUN)
    run = runs.shape[1] - 1 - runs.amax(2).flip(1).argmax(1)
    chosen = runs[torch.arange(len(run), device=run.device), run]
    value, column = chosen.flip(1).max(1)
    return run * RUN + RUN - 1 - column, value


def _add_gradient(
    of_anchors: Tensor, of_others: Tensor, anchors: Tensor, others: Tensor, found: Triplets, active: Tensor
) -> None:
    """Add the gradients of active triplets: 2(n − p) for a, 2(p − a) for p, 2(a − n) for n."""
    weight = 2.0 * active[:, None]
    negative = found.negative.clamp(max=len(others) - 1)  # out of range if an anchor has no negative
    a, p, n = anchors[found.anchor], others[found.positive], others[negative]
    of_anchors.index_add_(0, found.anchor, (n - p) * weight)
    of_others.index_add_(0, found.positive, (p - a) * weight)
    of_others.index_add_(0, negative, (a - n) * weight)
