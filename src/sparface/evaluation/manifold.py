"""Precision and recall of made faces (Kynkäänniemi et al. 2019), on a judge's embeddings.

The faces of a set are taken to fill the balls around each of its embeddings, up to its k-th neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NEIGHBOURS = 3
"""k, as in the paper."""
_AT_ONCE = 512
"""Rows of distances that are in memory at a time."""


def precision_and_recall(real: Floats, made: Floats, neighbours: int = NEIGHBOURS) -> tuple[Bools, Bools]:
    """For each made face [N,E], whether it is among the real ones [M,E] (its mean is the precision), and for
    each real face, whether it is among the made ones (recall).

    Both sets should have about as many faces. Raises ValueError if one has no more than `neighbours`.
    """
    return within(made, real, radii(real, neighbours)), within(real, made, radii(made, neighbours))


def radii(x: Floats, neighbours: int = NEIGHBOURS) -> Floats:
    """The distance [N] of each row of x [N,E] to its k-th nearest other row."""
    if len(x) <= neighbours:
        raise ValueError(f"{len(x)} faces have no {neighbours}th neighbour")
    # the nearest row is the row itself
    return np.concatenate([np.partition(part, neighbours, axis=1)[:, neighbours] for part in distances(x, x)])


def within(x: Floats, others: Floats, reach: Floats) -> Bools:
    """Whether each row of x [N,E] is within the `reach` [M] of any of the others [M,E]."""
    return np.concatenate([(part <= reach).any(axis=1) for part in distances(x, others)])


def distances(x: Floats, others: Floats) -> Iterator[Floats]:
    """Yield the Euclidean distances of some rows of x [N,E] at a time to the others [M,E]."""
    squares = (others**2).sum(axis=1)
    for first in range(0, len(x), _AT_ONCE):
        rows = x[first : first + _AT_ONCE]
        found = (rows**2).sum(axis=1)[:, None] + squares - 2 * rows @ others.T
        yield np.sqrt(found.clip(min=0))
