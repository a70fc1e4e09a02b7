"""Run MTCNN's three networks on several images of one size at once.

The networks, their weights, the rules between them and the resulting boxes are those of facenet-pytorch
(`benchmarks/align.py` compares the boxes). It is faster for three reasons: all images of a batch share each
network call; tensors are in the layout in which the CPU is fastest; and all resized images and crops are
computed from one summed-area table per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparface.faces.networks import Floats, Network
from sparface.faces.pyramid import WINDOW, scales
from sparface.faces.sums import Ints, Sums

_STRIDE = 2
"""Stride of the first network in pixels."""
_CROPS = 128
"""Maximum number of crops per network call."""
_MULTIPLE = 4
"""The number of crops is a multiple, filled up with repetitions: oneDNN compiles code for each number."""


@dataclass(frozen=True)
class Found:
    """The faces found in one image by descending score, in pixels."""

    boxes: Floats
    """[faces, 4]: left, top, right, bottom."""
    scores: Floats
    """[faces], in [0, 1]"""
    landmarks: Floats
    """[faces, 5, 2]: x, y."""


class Cascade:
    """The three networks, with the weights that are included in facenet-pytorch."""

    def __init__(self) -> None:
        self._propose = Network("pnet", pools=(2, 0, 0))
        self._refine = Network("rnet", pools=(3, 3, 0, 0))
        self._decide = Network("onet", pools=(3, 3, 2, 0, 0))

    def find(
        self, images: Sequence[NDArray[np.uint8]], smallest: float, thresholds: Sequence[float]
    ) -> list[Found]:
        """Find the faces in each image [H, W, 3]; all images must have the same size.

        `smallest` is the side of the smallest face to find, in pixels; `thresholds` are the minimum scores
        after each network.
        """
        sums = Sums(images)
        candidates = self._proposals(sums, smallest, thresholds[0])
        candidates = candidates.judged(self._refine, sums, 24, thresholds[1])
        candidates = candidates[candidates.apart(0.7, within=candidates.owners)].shifted(border=1).squared()
        candidates = candidates.judged(self._decide, sums, 48, thresholds[2])
        landmarks = candidates.landmarks()
        candidates = candidates.shifted(border=1)
        best = candidates.apart(0.7, within=candidates.owners, of_smaller=True)
        return [
            Found(candidates.boxes[own], candidates.scores[own], landmarks[own])
            for own in (best[candidates.owners[best] == image] for image in range(len(sums)))
        ]

    def _proposals(self, sums: Sums, smallest: float, threshold: float) -> _Candidates:
        """The candidates of the first network at all scales."""
        levels = []
        for scale in scales(min(sums.height, sums.width), smallest):
            size = int(sums.height * scale + 1), int(sums.width * scale + 1)
            scores, outputs = self._propose(sums.resized(sums.whole(), size))
            image, row, column = (scores >= threshold).nonzero()
            corner = (np.stack([column, row], 1) * _STRIDE + 1).astype(np.float32)
            boxes = np.floor(np.concatenate([corner, corner + (WINDOW - 1)], 1) / np.float32(scale))
            levels.append(
                _Candidates(boxes, scores[image, row, column], image, outputs[image, :, row, column])
            )
        found = _Candidates.joined(levels)
        level = np.repeat(np.arange(len(levels)), np.array([len(part) for part in levels], int))
        # Boxes of different scales never overlap by the 70 % at which facenet-pytorch drops one of them.
        return found[found.apart(0.5, within=found.owners + len(sums) * level)].shifted(border=0).squared()


@dataclass(frozen=True)
class _Candidates:
    """The candidate faces in all images after one of the networks."""

    boxes: Floats
    """[n, 4]"""
    scores: Floats
    """[n]"""
    owners: Ints
    """[n]: index of the image"""
    outputs: Floats
    """[n, 4 or 14]: offsets of the sides as fractions of the box, perhaps five x and five y of landmarks."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: NDArray[Any] | slice) -> _Candidates:
        return _Candidates(self.boxes[chosen], self.scores[chosen], self.owners[chosen], self.outputs[chosen])

    @classmethod
    def joined(cls, parts: Sequence[_Candidates]) -> _Candidates:
        if not parts:
            sides = np.empty((0, 4), np.float32)
            return cls(sides, np.empty(0, np.float32), np.empty(0, np.int64), sides)
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.owners for part in parts]),
            np.concatenate([part.outputs for part in parts]),
        )

    def judged(self, network: Network, sums: Sums, side: int, threshold: float) -> _Candidates:
        """Keep those that another network scores above `threshold`, with its scores and outputs."""
        boxes = _pixels(self.boxes, sums.height, sums.width)
        inside = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        if not len(inside):
            return self[inside]
        padded = np.resize(inside, -(-len(inside) // _MULTIPLE) * _MULTIPLE)
        answers = [
            network(sums.resized((boxes[part], self.owners[part]), (side, side)))
            for part in (padded[first : first + _CROPS] for first in range(0, len(padded), _CROPS))
        ]
        scores, outputs = (
            np.concatenate(parts)[: len(inside), ..., 0, 0] for parts in zip(*answers, strict=True)
        )
        return replace(self[inside], scores=scores, outputs=outputs)[scores > threshold]

    def apart(self, share: float, within: Ints, *, of_smaller: bool = False) -> Ints:
        """The places of boxes that no better box of the same group overlaps by over `share`, best first.

        The share is that of the union, or of the smaller box. In each round, the best remaining box of every
        group is kept and drops the others. (torchvision has this, but importing it takes over a second.)
        """
        order, boxes = np.lexsort((-self.scores, within)), self.boxes.T.copy()
        kept = [order[:0]]
        while len(order):
            groups = within[order]
            first = np.concatenate([[True], groups[1:] != groups[:-1]])
            best = order[first]
            kept.append(best)
            worse = _overlap(boxes[:, order], boxes[:, best[np.cumsum(first) - 1]], share, of_smaller)
            order = order[~(first | worse)]
        return np.concatenate(kept)

    def shifted(self, border: int) -> _Candidates:
        """Apply the regression offsets. `border` (0 or 1) is MTCNN's convention for the size of a box."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2] + border
        return replace(self, boxes=self.boxes + self.outputs[:, :4] * np.tile(sides, 2))

    def squared(self) -> _Candidates:
        """Extend boxes to squares with the same centre and the longer side."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        longer = sides.max(1, keepdims=True)
        corner = self.boxes[:, :2] + sides * 0.5 - longer * 0.5
        return replace(self, boxes=np.concatenate([corner, corner + longer], 1))

    def landmarks(self) -> Floats:
        """The five landmarks [n, 5, 2] in pixels."""
        points = self.outputs[:, 4:].reshape(len(self), 2, 5).transpose(0, 2, 1)
        sides = self.boxes[:, 2:] - self.boxes[:, :2] + 1
        return points * sides[:, None] + self.boxes[:, None, :2] - 1


def _overlap(one: Floats, other: Floats, share: float, of_smaller: bool) -> NDArray[np.bool_]:
    """Whether boxes [4, n] overlap by over `share`. MTCNN counts borders where the smaller box matters."""
    border = np.float32(of_smaller)
    width, height = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) + border, 0)
    shared = width * height
    areas = [np.multiply(*(boxes[2:] - boxes[:2] + border)) for boxes in (one, other)]
    whole = np.minimum(*areas) if of_smaller else areas[0] + areas[1] - shared
    return np.asarray(shared > share * whole)


def _pixels(boxes: Floats, height: int, width: int) -> Ints:
    """Clip boxes to pixels of the image [n, 4], the last two exclusive. MTCNN counts pixels from 1."""
    corners = np.trunc(boxes).astype(np.int64)
    low = np.maximum(corners[:, :2], 1) - 1
    return np.concatenate([low, np.minimum(corners[:, 2:], (width, height))], 1)
