"""Resize many rectangles of images by area averaging, from one summed-area table per image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Sums:
    """A summed-area table per image, which gives the mean of any rectangle from four look-ups.

    Sums wrap around at 32 bits, but their differences are exact: no averaged rectangle has a larger sum.
    """

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """All images [H, W, 3] must have the same size."""
        self.height, self.width = images[0].shape[:2]
        # Four channels of 4 bytes make a pixel one 16-byte item for NumPy's `take`.
        table = np.zeros((len(images), self.height + 1, self.width + 1, 4), np.int32)
        for image, sums in zip(images, table, strict=True):
            np.cumsum(image, 1, np.int32, out=sums[1:, 1:, :3])
            for above, row in pairwise(sums):  # takes half the time of `cumsum`
                row += above
        self._count = len(images)
        self._table = table.view(np.complex128).ravel()

    def __len__(self) -> int:
        """Number of images."""
        return self._count

    def whole(self) -> tuple[Ints, Ints]:
        """One rectangle per image that covers it: boxes [images, 4] and owners [images]."""
        return np.tile([0, 0, self.width, self.height], (self._count, 1)), np.arange(self._count)

    def resized(self, rectangles: tuple[Ints, Ints], size: tuple[int, int]) -> NDArray[np.float32]:
        """Resize rectangles by area averaging (or repetition), like torch's `interpolate(mode="area")`.

        `rectangles` are left, top, right, bottom [n, 4], the last two exclusive, and the image indices [n].
        Returns [n, 3, *size] in [-1, 1].
        """
        boxes, owners = rectangles
        left, right = (edges[:, None] for edges in _bins(boxes[:, 0], boxes[:, 2], size[1]))
        top, bottom = (edges[..., None] for edges in _bins(boxes[:, 1], boxes[:, 3], size[0]))
        stride = self.width + 1
        first = owners[:, None, None] * (self.height + 1) * stride
        upper, lower = first + top * stride, first + bottom * stride
        total = self._at(lower + right)
        total -= self._at(upper + right)
        total -= self._at(lower + left)
        total += self._at(upper + left)
        area = (bottom - top).astype(np.float32) * (right - left).astype(np.float32)
        mean = np.empty((len(boxes), 3, *size), np.float32)
        mean[:] = total[..., :3].transpose(0, 3, 1, 2)
        mean *= np.float32(1 / 128) / area[:, None]
        mean -= np.float32(127.5 / 128)
        return mean

    def _at(self, places: Ints) -> NDArray[np.int32]:
        """[..., 4]"""
        return self._table.take(places).view(np.int32).reshape(*places.shape, 4)


def _bins(first: Ints, last: Ints, count: int) -> tuple[Ints, Ints]:
    """The starts and ends [n, count] of `count` bins in each range first .. last; bins may overlap."""
    length, steps = (last - first)[:, None], np.arange(count)
    return first[:, None] + steps * length // count, first[:, None] - -(steps + 1) * length // count
