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


@dataclass(frozen=True)
class Slots:
    """A batch, divided into faces that stay real and sources, of which sparring faces are made."""

    real: Faces
    source: Faces
    """The same object as `real` if sparring faces are added."""

    @property
    def labels(self) -> Tensor:
        """Those of real and then sparring faces, int64 [r+s]."""
        return torch.cat([self.real.labels, self.source.labels])

    @property
    def positions(self) -> Tensor:
        """Those of real and then sparring faces in the stream, int64 [r+s]."""
        return torch.cat([self.real.positions, self.source.positions])


def replaced(share: float, group: int) -> int:
    """How many faces of each `group` of faces are replaced: the share, rounded (halves are rounded down), but
    at least one, and at least one face stays. Raises `UserError` for groups of one face."""
    if group < 2:
        raise UserError(
            "sparring.slots: replace needs groups of two or more faces, one of which stays; "
            "set data.images_per_identity to 2 or more"
        )
    return min(max(math.ceil(share * group - 0.5), 1), group - 1)


def divide(faces: Faces, group: int, count: int, seed: int) -> Slots:
    """Divide a batch of whole groups, with `count` sources in each `group` of faces.

    Which ones is drawn from (seed, position), so it does not depend on the number of processes.
    """
    draws = uniform(seed, faces.positions, 1, STREAM).view(-1, group)
    first = torch.arange(0, len(faces.positions), group, device=draws.device)
    drawn = draws.argsort(1) + first[:, None]
    return Slots(faces.take(drawn[:, count:].flatten()), faces.take(drawn[:, :count].flatten()))
