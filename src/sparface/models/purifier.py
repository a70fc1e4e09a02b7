"""The purifier: keeps of a face what a memory of clean faces recognizes (Ren et al. 2024).

A face is projected to eigenfaces. An encoder looks up a memory, and what it remembers decides with which
probability each eigenface is kept. The purified face is made of those that a random mask keeps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface.models.eigenfaces import Eigenfaces
from sparface.models.small import SmallResNet
from sparface.randomness import uniform

FEATURES, CELLS = 512, 128
SHARPNESS = 16.0
"""Factor on the cosines to the cells, before the softmax."""
KEPT = 2.0
"""Logit of the probability to keep a component in an untrained network."""
STREAM = 20_000
"""Stream of `sparface.randomness`; the n-th further draw of a face uses n more."""


class Memory(nn.Module):
    """Cells that features are compared with; they follow the features by a moving average."""

    cells: Tensor
    """[CELLS,FEATURES]"""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("cells", torch.randn(CELLS, FEATURES))

    def weights(self, features: Tensor) -> Tensor:
        """How much each cell resembles features [B,FEATURES], as shares [B,CELLS]."""
        cosines = F.normalize(features, dim=1) @ F.normalize(self.cells, dim=1).T
        return (SHARPNESS * cosines).softmax(1)

    def forward(self, features: Tensor) -> Tensor:
        """What is remembered [B,FEATURES] of features [B,FEATURES]."""
        with torch.autocast(features.device.type, enabled=False):
            weights = self.weights(features.to(self.cells.dtype))
            return weights @ self.cells.clone()  # `remember` changes them before the backward

    @torch.no_grad()
    def remember(self, features: Tensor) -> Tensor:
        """Move each cell towards the features [B,FEATURES] of all processes that resemble it; returns the
        effective number of cells in use (the perplexity of their shares). Features that are not finite
        change nothing."""
        features = features.to(self.cells.dtype)
        weights = self.weights(features)
        use = weights.sum(0)
        means = weights.T @ features / use[:, None]
        moved = torch.lerp(self.cells, means, 1 - self.decay)
        self.cells.copy_(torch.where(torch.isfinite(moved).all(), moved, self.cells))
        shares = use / use.sum()
        return (-(shares * (shares + 1e-12).log()).sum()).exp()


class Selector(nn.Module):
    """Maps faces [B,3,H,W] in [0,1] to the logits [B,components] of keeping each component, and the features
    [B,FEATURES] for the memory."""

    def __init__(self, components: int, decay: float) -> None:
        super().__init__()
        self.encoder = SmallResNet(FEATURES)
        self.memory = Memory(decay)
        self.head = nn.Linear(FEATURES, components)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, KEPT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(4 * x - 2)
        logits: Tensor = self.head(self.memory(features))
        return logits.to(self.memory.cells.dtype), features


class Purifier(nn.Module):
    """Maps faces [B,3,H,W] in [0,1] to purified ones.

    A trained selector and the space that it selects from. Without `noise`, each component is weighted with
    its probability, which gives the mean of all random faces.
    """

    def __init__(self, selector: Selector, eigenfaces: Eigenfaces) -> None:
        super().__init__()
        self.selector, self.eigenfaces = selector, eigenfaces
        self.training = selector.training

    def noise(self, seed: int, positions: Tensor, draw: int = 0) -> Tensor:
        """Draw what the masks of faces at int64 [B] positions are made from, [B,components] in [0,1)."""
        return uniform(seed, positions, len(self.eigenfaces.basis), STREAM + draw)

    def strangeness(self, x: Tensor) -> Tensor:
        """How far the features of faces [B,3,H,W] are from the nearest cell of the memory, 1 − cosine [B]."""
        _, features = self.selector(self.eigenfaces.seen(x))
        cells: Tensor = self.selector.memory.cells
        return 1 - (F.normalize(features, dim=1) @ F.normalize(cells, dim=1).T).amax(1)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        x = self.eigenfaces.seen(x)
        keep = self.selector(x)[0].sigmoid()
        mask = keep if noise is None else drawn(keep, noise)
        return self.eigenfaces.faces(self.eigenfaces.coordinates(x) * mask)


def drawn(keep: Tensor, noise: Tensor) -> Tensor:
    """Masks of 0 and 1, drawn with probabilities `keep`. The gradient is passed straight through to the
    probabilities (Bengio et al. 2013)."""
    return (noise < keep).to(keep) + (keep - keep.detach())
