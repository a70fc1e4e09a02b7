"""The generator of disguises: from a face to the parameters of a bounded change."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface.models.sae import Encoder

CELLS = 2
"""The code is averaged over this many parts per side."""


class Disguiser(Encoder):
    """Maps faces [B,3,H,W] in [0,1] to `parameters` numbers per face, the arctanh of the change.

    The head is a mean of the code over 2 × 2 parts of the face and two linear layers with a ReLU between
    them. The last one is zero at the start.
    """

    FORM = "bounded parameters"
    """What the outputs mean; checkpoints with another form are rejected."""

    def __init__(self, parameters: int, width: int = 16, blocks: int = 6, noise: float = 0.0) -> None:
        super().__init__(width, blocks, noise)
        self.hidden = nn.Linear(4 * width * CELLS * CELLS, 4 * width)
        self.parameters_of = nn.Linear(4 * width, parameters)
        nn.init.zeros_(self.parameters_of.weight)
        nn.init.zeros_(self.parameters_of.bias)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Compute the parameters [B, parameters], at least float32; `noise` is as in `Encoder.code`."""
        pooled = F.adaptive_avg_pool2d(self.code(x, noise), CELLS).flatten(1)
        found: Tensor = self.parameters_of(F.relu(self.hidden(pooled)))
        return found.to(torch.promote_types(found.dtype, torch.float32))
