"""The strong variation: bounds, and drawing what changes. `apply` in `changes` computes the faces.

Whitening cancels a gain and an offset of a whole face, so none of the changes is one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparface.kernels.common import at_least_float32
from sparface.randomness import uniform
from sparface.variation.occluders import Occluders, between

STREAM = 1
"""Default stream of `sparface.randomness`, the same as that of the classic variation."""
BOUNDS: dict[str, tuple[tuple[int, ...], float]] = {
    "rotation": ((), math.radians(15)),
    "scale": ((), 0.18),
    "shift": ((2,), 0.08),
    "perspective": ((2,), 0.15),
    "warp": ((2, 4, 4), 0.04),
    "gamma": ((), 0.3),
    "contrast": ((), 0.4),
    "light": ((1, 3, 3), 0.4),
    "saturation": ((), 0.4),
    "tint": ((3,), 0.1),
}
"""Field of `Variation` → its shape for one face, and its largest absolute value at strength 1."""
PARAMETERS = sum(math.prod(shape) for shape, _ in BOUNDS.values())
"""Numbers that describe the bounded changes of a face (53)."""
GREY_SHARE, COARSE_SHARE, PATCH_SHARE = 0.25, 0.25, 0.4
"""Shares of faces that lose their colours, lose resolution, or get a patch."""
RESOLUTION = (0.25, 0.8)
PATCH_SIDE = (0.15, 0.45)
"""As fractions of the face's side."""


@dataclass(frozen=True)
class Variation:
    """What changes in b faces. A field of zeros is no change, unless another value is given."""

    rotation: Tensor
    """[b], in radians; positive turns what is seen counterclockwise."""
    scale: Tensor
    """[b], log of the factor by which the seen part grows, so positive makes the face smaller."""
    shift: Tensor
    """[b,2], of the seen part to the right and down, as a fraction of the side."""
    perspective: Tensor
    """[b,2], (right, down): places that are seen are divided by 1 + right · x + down · y."""
    warp: Tensor
    """[b,2,4,4], displacements (x, y) at 4 × 4 points in half-widths, interpolated bicubically."""
    gamma: Tensor
    """[b], log of the exponent of the pixel values."""
    contrast: Tensor
    """[b], log of the slope at mid-grey, of a curve that keeps black, mid-grey and white."""
    light: Tensor
    """[b,1,3,3], log of the light at 3 × 3 points, interpolated bilinearly."""
    saturation: Tensor
    """[b], log of the factor on the difference to grey."""
    tint: Tensor
    """[b,3], log of the factor on each channel."""
    mirror: Tensor | None = None
    """[b]: −1 mirrors, 1 does not. None: not mirrored."""
    grey: Tensor | None = None
    """[b]: 0 keeps colours, 1 removes them. None: kept."""
    resolution: Tensor | None = None
    """[b], in (0, 1]: faces are resampled to this fraction of their side and back. None: they are not."""
    patch: Occluders | None = None
    """Covers a part of each face after all other changes. None: nothing is covered."""


def bounded(values: Tensor, strength: float = 1.0) -> Variation:
    """The changes at `values` [b, PARAMETERS] in [−1, 1], as multiples of `strength` times the bounds.

    Differentiable, for a network that chooses them. There is no mirroring, no grey, no loss of resolution
    and no patch.
    """
    sizes = [math.prod(shape) for shape, _ in BOUNDS.values()]
    parts = torch.split(at_least_float32(values), sizes, 1)
    return Variation(
        **{  # type: ignore[arg-type]
            name: (part * (strength * bound)).reshape(-1, *shape)
            for part, (name, (shape, bound)) in zip(parts, BOUNDS.items(), strict=True)
        }
    )


def draw(
    seed: int,
    positions: Tensor,
    strength: float = 1.0,
    stream: int = STREAM,
    dtype: torch.dtype = torch.float32,
) -> Variation:
    """Draw changes for the faces at `positions` int64 [b] of the stream, on their device.

    `strength` multiplies all magnitudes (as a power for the resolution) and no probabilities: with 0, faces
    are only mirrored. It is at most 2, where perspective still keeps every point in front.
    """
    draws = uniform(seed, positions, 10 + PARAMETERS, stream).to(dtype)
    others, values = draws[:, :10], draws[:, 10:]  # the mirror first, so the same faces as in `classic`
    coarse = between(*RESOLUTION, others[:, 3]) ** strength
    return replace(
        bounded(between(-1, 1, values), strength),
        mirror=torch.where(others[:, 0] < 0.5, -1.0, 1.0).to(dtype),
        grey=(others[:, 1] < GREY_SHARE).to(dtype) * min(strength, 1),
        resolution=torch.where(others[:, 2] < COARSE_SHARE, coarse, 1),
        patch=Occluders(
            centre=between(-1, 1, others[:, 5:7]),
            size=between(*PATCH_SIDE, others[:, 7:9]) * strength,
            angle=torch.zeros_like(others[:, 0]),
            opacity=(others[:, 4] < PATCH_SHARE).to(dtype),
            texture=others[:, 9, None, None, None],
        ),
    )
