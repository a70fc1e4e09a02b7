"""The generator of salient occlusion: from a face to the damage that covering each of its places would do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface.models.sae import Encoder

GRID = 8
"""Places per side of a face."""
GAIN = 10.0
"""Factor on the map that is the same for all faces: it has to be learned within a few hundred steps, in each
of which an optimizer like Adam changes a weight by no more than the learning rate."""


class Placer(Encoder):
    """Predicts, for each of `GRID` × `GRID` places of faces [B,3,H,W] in [0,1], the damage of covering it.

    The head is a 3×3 convolution with BatchNorm + ReLU, a mean over each place, and a 1×1 convolution. A map
    that is the same for all faces is added, as faces are aligned. Both are zero at the start, so no place is
    preferred. The sum is smoothed over neighbouring places, as a cover is larger than a place.
    """

    FORM = f"effect of a place, gain {GAIN:g}"
    """What the outputs mean; checkpoints with another form are rejected."""

    def __init__(self, width: int = 16, blocks: int = 6) -> None:
        super().__init__(width, blocks)
        self.features = nn.Sequential(
            nn.Conv2d(4 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
        )
        self.effect = nn.Conv2d(2 * width, 1, 1)
        nn.init.zeros_(self.effect.weight)
        self.everywhere = nn.Parameter(torch.zeros(GRID, GRID))

    def forward(self, x: Tensor) -> Tensor:
        """Predict the damage [B, GRID, GRID], rows from top to bottom; at least float32."""
        features = F.adaptive_avg_pool2d(self.features(self.encode(x)), GRID)
        effect: Tensor = self.effect(features)
        effect = effect.to(torch.promote_types(effect.dtype, torch.float32)) + GAIN * self.everywhere
        return F.avg_pool2d(effect, 3, stride=1, padding=1, count_include_pad=False)[:, 0]
