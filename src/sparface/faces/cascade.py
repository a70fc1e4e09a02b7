"""Run MTCNN's three networks on several images of one size at once.

The networks, their weights, the rules between them and the resulting boxes are those of facenet-pytorch
(`benchmarks/align.py` compares the boxes). It is faster for three reasons: all images of a batch share each
network call; tensors are channels-last, which halves the time of convolution and pooling on the CPU; and all
resized images and crops are computed from one summed-area table per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms

from sparface.faces.pyramid import WINDOW, scales

_STRIDE = 2
"""Stride of the first network in pixels."""
_CROPS = 512
"""Maximum number of crops per network call; bounds memory."""

Ints = NDArray[np.int64]
Network = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Found:
    """The faces found in one image, in pixels."""

    boxes: NDArray[np.float32]
    """[faces, 4]: left, top, right, bottom."""
    scores: NDArray[np.float32]
    """[faces], in [0, 1]"""
    landmarks: NDArray[np.float32]
    """[faces, 5, 2]: x, y."""


class Cascade:
    """The three networks, with the weights that are included in facenet-pytorch."""

    def __init__(self) -> None:
        networks = MTCNN(device="cpu").to(memory_format=torch.channels_last)
        self._propose, self._refine, self._decide = networks.pnet, networks.rnet, networks.onet

    @torch.inference_mode()
    def find(
        self, images: Sequence[NDArray[np.uint8]], smallest: float, thresholds: Sequence[float]
    ) -> list[Found]:
        """Find the faces in each image [H, W, 3]; all images must have the same size.

        `smallest` is the side of the smallest face to find, in pixels; `thresholds` are the minimum scores
        after each network.
        """
        sums = _Sums(images)
        candidates = self._proposals(sums, smallest, thresholds[0])
        candidates = self._refined(sums, candidates, thresholds[1])
        return self._decided(sums, candidates, thresholds[2])

    def _proposals(self, sums: _Sums, smallest: float, threshold: float) -> _Candidates:
        """The candidates of the first network at all scales."""
        boxes, scores, owners, shifts, levels = [], [], [], [], []
        everything = sums.whole()
        for number, scale in enumerate(scales(min(sums.height, sums.width), smallest)):
            size = int(sums.height * scale + 1), int(sums.width * scale + 1)
            shift, score = self._propose(sums.resized(everything, size))
            image, row, column = (score[:, 1] >= threshold).nonzero(as_tuple=True)
            corner = torch.stack([column, row], 1) * _STRIDE + 1.0
            ends = torch.cat([corner, corner + (WINDOW - 1)], 1)
            boxes.append((ends / scale).floor())
            scores.append(score[image, 1, row, column])
            shifts.append(shift[image, :, row, column])
            owners.append(image)
            levels.append(torch.full_like(image, number))
        if not boxes:
            return _Candidates.none()
        found = _Candidates(torch.cat(boxes), torch.cat(scores), torch.cat(owners), torch.cat(shifts))
        found = found.without_overlaps(0.5, within=found.owners + len(sums) * torch.cat(levels))
        found = found.without_overlaps(0.7, within=found.owners)
        return found.shifted(border=0).squared()

    def _refined(self, sums: _Sums, candidates: _Candidates, threshold: float) -> _Candidates:
        candidates = candidates.inside(sums.height, sums.width)
        if not len(candidates):
            return candidates
        shifts, scores = _in_parts(self._refine, sums, candidates, 24)
        passed = scores[:, 1] > threshold
        found = _Candidates(
            candidates.boxes[passed], scores[passed, 1], candidates.owners[passed], shifts[passed]
        )
        return found.without_overlaps(0.7, within=found.owners).shifted(border=1).squared()

    def _decided(self, sums: _Sums, candidates: _Candidates, threshold: float) -> list[Found]:
        candidates = candidates.inside(sums.height, sums.width)
        if not len(candidates):
            return [_NOTHING] * len(sums)
        shifts, points, scores = _in_parts(self._decide, sums, candidates, 48)
        passed = scores[:, 1] > threshold
        found = _Candidates(
            candidates.boxes[passed], scores[passed, 1], candidates.owners[passed], shifts[passed]
        )
        landmarks = _landmarks(found.boxes, points[passed])
        found = found.shifted(border=1)
        return [_best(found, landmarks, found.owners == image) for image in range(len(sums))]


@dataclass(frozen=True)
class _Candidates:
    """The candidate faces in all images after one of the networks."""

    boxes: Tensor
    """[n, 4]"""
    scores: Tensor
    """[n]"""
    owners: Tensor
    """[n]: index of the image"""
    shifts: Tensor
    """[n, 4]: regression offsets of the sides, as fractions of the box."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: Tensor) -> _Candidates:
        return _Candidates(self.boxes[chosen], self.scores[chosen], self.owners[chosen], self.shifts[chosen])

    @classmethod
    def none(cls) -> _Candidates:
        return cls(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0, 4))

    def without_overlaps(self, share: float, within: Tensor) -> _Candidates:
        """Non-maximum suppression: drop boxes that overlap a better one in the same group by over `share`."""
        return self[batched_nms(self.boxes, self.scores, within, share)]

    def shifted(self, border: int) -> _Candidates:
        """Apply the regression offsets. `border` (0 or 1) is MTCNN's convention for the size of a box."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2] + border
        return self._at(self.boxes + self.shifts * sides.repeat(1, 2))

    def squared(self) -> _Candidates:
        """Extend boxes to squares with the same centre and the longer side."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        longer = sides.max(1, keepdim=True).values
        corner = self.boxes[:, :2] + sides * 0.5 - longer * 0.5
        return self._at(torch.cat([corner, corner + longer], 1))

    def inside(self, height: int, width: int) -> _Candidates:
        """Keep the boxes that intersect the image."""
        left, top, right, bottom = _pixels(self.boxes, height, width).T
        return self[torch.from_numpy((right > left) & (bottom > top))]

    def _at(self, boxes: Tensor) -> _Candidates:
        return _Candidates(boxes, self.scores, self.owners, self.shifts)


class _Sums:
    """A summed-area table per image, which gives the mean of any rectangle from four look-ups.

    Sums wrap around at 32 bits, but their differences are exact: no averaged rectangle has a larger sum.
    """

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self.height, self.width = images[0].shape[:2]
        # Four channels of 4 bytes make a pixel one 16-byte item for NumPy's `take`.
        table = np.zeros((len(images), self.height + 1, self.width + 1, 4), np.uint32)
        for number, image in enumerate(images):
            inner = table[number, 1:, 1:]
            inner[..., :3] = image
            np.cumsum(inner, 0, out=inner)
            np.cumsum(inner, 1, out=inner)
        self._count = len(images)
        self._table = table.view(np.complex128).ravel()

    def __len__(self) -> int:
        """Number of images."""
        return self._count

    def whole(self) -> tuple[Ints, Ints]:
        """One rectangle per image that covers it: boxes [images, 4] and owners [images]."""
        return np.tile([0, 0, self.width, self.height], (self._count, 1)), np.arange(self._count)

    def resized(self, rectangles: tuple[Ints, Ints], size: tuple[int, int]) -> Tensor:
        """Resize rectangles by area averaging (or repetition), like torch's `interpolate(mode="area")`.

        `rectangles` are left, top, right, bottom [n, 4], the last two exclusive, and the image indices [n].
        Returns [n, 3, *size] in [-1, 1], channels-last.
        """
        boxes, owners = rectangles
        left, right = _bins(boxes[:, 0], boxes[:, 2], size[1])
        top, bottom = _bins(boxes[:, 1], boxes[:, 3], size[0])
        offsets = owners[:, None] * (self.height + 1)
        upper, lower = (((offsets + rows) * (self.width + 1))[:, :, None] for rows in (top, bottom))
        left, right = left[:, None, :], right[:, None, :]
        total = self._at(lower + right)
        total -= self._at(upper + right)
        total -= self._at(lower + left)
        total += self._at(upper + left)
        area = (lower - upper) // (self.width + 1) * (right - left)
        mean = total[..., :3].astype(np.float32) * (1 / area).astype(np.float32)[..., None]
        return torch.from_numpy((mean - np.float32(127.5)) * np.float32(0.0078125)).permute(0, 3, 1, 2)

    def _at(self, places: Ints) -> NDArray[np.uint32]:
        """[..., 4]"""
        return self._table.take(places).view(np.uint32).reshape(*places.shape, 4)


def _bins(first: Ints, last: Ints, count: int) -> tuple[Ints, Ints]:
    """The starts and ends [n, count] of `count` bins in each range first .. last; bins may overlap."""
    length, steps = (last - first)[:, None], np.arange(count)
    return first[:, None] + steps * length // count, first[:, None] - -(steps + 1) * length // count


def _pixels(boxes: Tensor, height: int, width: int) -> Ints:
    """Clip boxes to pixels of the image [n, 4], the last two exclusive. MTCNN counts pixels from 1."""
    whole = boxes.trunc().long().numpy()
    return np.stack(
        [
            np.maximum(whole[:, 0], 1) - 1,
            np.maximum(whole[:, 1], 1) - 1,
            np.minimum(whole[:, 2], width),
            np.minimum(whole[:, 3], height),
        ],
        axis=1,
    )


def _in_parts(network: Network, sums: _Sums, candidates: _Candidates, side: int) -> list[Tensor]:
    """Run a network on the crops of all candidates."""
    boxes, owners = _pixels(candidates.boxes, sums.height, sums.width), candidates.owners.numpy()
    answers = []
    for first in range(0, len(boxes), _CROPS):
        part = slice(first, first + _CROPS)
        answers.append(network(sums.resized((boxes[part], owners[part]), (side, side))))
    return [torch.cat(parts) for parts in zip(*answers, strict=True)]


def _landmarks(boxes: Tensor, points: Tensor) -> Tensor:
    """Convert landmarks from fractions of the box [n, 10] (five x, then five y) to pixels [n, 5, 2]."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return points.view(-1, 2, 5).transpose(1, 2) * sides[:, None] + boxes[:, None, :2] - 1


def _best(candidates: _Candidates, landmarks: Tensor, chosen: Tensor) -> Found:
    """The candidates of one image by descending score, without those that lie inside a better one."""
    order = chosen.nonzero()[:, 0]
    order = order[candidates.scores[order].argsort(descending=True, stable=True)]
    boxes = candidates.boxes[order].numpy()
    kept: list[int] = []
    for place in range(len(order)):
        if all(_inner_overlap(boxes[place], boxes[other]) <= 0.7 for other in kept):
            kept.append(place)
    order = order[kept]
    return Found(boxes[kept], candidates.scores[order].numpy(), landmarks[order].numpy())


def _inner_overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The intersection of two boxes as a fraction of the smaller box."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) + 1
    areas = [(box[2:] - box[:2] + 1).prod() for box in (one, other)]
    return float(np.maximum(sides, 0).prod() / min(areas))


_NOTHING = Found(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty((0, 5, 2), np.float32))
