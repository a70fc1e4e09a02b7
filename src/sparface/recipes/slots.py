"""Which faces of a batch stay real, and of which sparring faces are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparface.errors import UserError
from sparface.randomness import uniform

STREAM = 21
"""Stream of `sparface.randomness`."""


@dataclass(frozen=True)
class Faces:
    """A part of a batch: faces [n,3,H,W] in [0,1], labels int64 [n], positions in the stream int64 [n]."""

    images: Tensor
    labels: Tensor
    positions: Tensor

    def take(self, rows: Tensor) -> Faces:
        """Return the faces at int64 [m] rows."""
        images = self.images[rows].contiguous(memory_format=torch.channels_last)
        return Faces(images, self.labels[rows], self.positions[rows])


def replaced(share: float, group: int) -> int:
    """How many faces of each `group` of faces are replaced: the share, rounded (halves are rounded down), but
    at least one, and at least one face stays. Raises `UserError` for groups of one face."""
    if group < 2:
        raise UserError(
            "sparring.slots: replace needs groups of two or more faces, one of which stays; "
            "set data.images_per_identity to 2 or more"
        )
    return min(max(math.ceil(share * group - 0.5), 1), group - 1)


def divide(faces: Faces, group: int, count: int, seed: int) -> tuple[Faces, Faces]:
    """Split a batch of whole groups into real faces and sources, `count` of each `group` of faces.

    Which ones is drawn from (seed, position), so it does not depend on the number of processes.
    """
    draws = uniform(seed, faces.positions, 1, STREAM).view(-1, group)
    first = torch.arange(0, len(faces.labels), group, device=draws.device)
    rows = draws.argsort(1) + first[:, None]
    return faces.take(rows[:, count:].flatten()), faces.take(rows[:, :count].flatten())
