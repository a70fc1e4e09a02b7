"""Eigenfaces (Turk & Pentland 1991): the principal components of faces, from passes over all of them.

A randomized block Krylov method (Musco & Musco 2015): each pass multiplies a block of directions by the
covariance, and the best components are then chosen from the span of all blocks. Memory depends on the number
of pixels and components, not on the number of faces, and there is no covariance matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparface.errors import UserError

PASSES = 8
"""Blocks of directions. The subspace angles to the exact components are below 1e-3 on faces."""
OVERSAMPLING = 16
MOST = 2**28
"""Most numbers in a basis."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
Total = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""The sum of a function of batches uint8 [n,3,H,W] over all faces; the function must take an empty batch."""


class Eigenfaces(nn.Module):
    """An affine space of faces: coordinates [B,K] ↔ faces [B,3,H,W] in [0,1], whose channels are equal if it
    is grey."""

    mean: Tensor
    """[D], D being the number of pixel values."""
    basis: Tensor
    """[K,D] with orthonormal rows, by falling variance; the largest value of each is positive."""
    variance: Tensor
    """[K] of the coordinates of the training faces; all 0 before `fit`."""

    def __init__(self, components: int, size: int, colour: bool) -> None:
        """Raises `UserError` for more components than pixel values, or than memory is worth."""
        super().__init__()
        self.colour, self.shape = colour, (3 if colour else 1, size, size)
        values = self.shape[0] * size * size
        if components > values:
            raise UserError(
                f"purifier.components: {components} is not allowed; faces have {values:,} values at this size"
            )
        if components * values > MOST:  # a run of somebody else may claim anything
            raise UserError(
                f"purifier.components: {components} is not allowed; at most {MOST // values} at this size"
            )
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.zeros(components, values))
        self.register_buffer("variance", torch.zeros(components))

    def seen(self, x: Tensor) -> Tensor:
        """Faces [B,3,H,W] as this space knows them: grey ones if it is grey."""
        if self.colour:
            return x
        red, green, blue = (weight * x[:, i : i + 1] for i, weight in enumerate(LUMINANCE))
        return (red + green + blue).expand(-1, 3, -1, -1).contiguous()

    def flat(self, x: Tensor) -> Tensor:
        """The values [B,D] of faces [B,3,H,W]."""
        return self.seen(x)[:, : self.shape[0]].flatten(1)

    def coordinates(self, x: Tensor) -> Tensor:
        """Project faces [B,3,H,W] to coordinates [B,K]."""
        with torch.autocast(x.device.type, enabled=False):  # it would round pixels to bf16
            return (self.flat(x).to(self.mean) - self.mean) @ self.basis.T

    def faces(self, coordinates: Tensor) -> Tensor:
        """Return the faces [B,3,H,W] with coordinates [B,K], clipped to [0,1]."""
        with torch.autocast(coordinates.device.type, enabled=False):
            values = coordinates.to(self.mean) @ self.basis + self.mean
        return values.view(-1, *self.shape).clamp(0, 1).expand(-1, 3, -1, -1)

    @torch.no_grad()
    def fit(self, count: int, total: Total, seed: int) -> None:
        """Compute mean and components of `count` faces, which `total` sums over. Raises `UserError` for too
        few of them."""
        components, values = self.basis.shape
        if count <= components:
            raise UserError(
                f"purifier.components: {components} is not allowed; the set has {count:,} faces, "
                "and there must be more faces than components"
            )
        # whole numbers are summed exactly, in any order
        sums = total(lambda images: images.sum(0, dtype=torch.int64))
        mean = self.flat(sums.double()[None] / (255 * count))[0]

        def covariance(directions: Tensor) -> Tensor:
            q = directions.float()

            def part(images: Tensor) -> Tensor:
                centred = self.flat(images.float() / 255) - mean.float()
                return (centred.T @ (centred @ q)).double()

            return total(part) / (count - 1)

        start = torch.randn(
            values, components // 2 + OVERSAMPLING, generator=torch.Generator().manual_seed(seed)
        )
        basis, variance = _components(covariance, start.to(mean), components, rank=count - 1)
        self.mean.copy_(mean)
        self.basis.copy_(_signed(basis).T)
        self.variance.copy_(variance)


def _components(
    covariance: Callable[[Tensor], Tensor], start: Tensor, count: int, rank: int
) -> tuple[Tensor, Tensor]:
    """The `count` leading eigenvectors [D,count] and eigenvalues of a covariance of at most that rank, by
    falling eigenvalue."""
    values, width = start.shape
    size = min(values, PASSES * width, rank + width)
    known, projected = start.new_zeros(values, size), start.new_zeros(size, size)
    block = start
    for first in range(0, size, width):
        last = min(first + width, size)
        block = _orthonormal(block[:, : last - first], known[:, :first])
        known[:, first:last] = block
        block = covariance(block)
        column = known[:, :last].T @ block
        projected[:last, first:last], projected[first:last, :last] = column, column.T
    eigenvalues, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    chosen = vectors.flip(1)[:, :count]
    return known @ chosen, eigenvalues.flip(0)[:count].clamp(min=0)


def _orthonormal(block: Tensor, known: Tensor) -> Tensor:
    """An orthonormal basis of what a block adds to known directions; twice is enough (Kahan)."""
    for _ in range(2):
        block = torch.linalg.qr(block - known @ (known.T @ block)).Q
    return block


def _signed(basis: Tensor) -> Tensor:
    """Turn each column so that its largest value is positive."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return basis * largest.sign()
