"""A small residual network for faces of about 64 px, trained from scratch on few images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparface.models.dropout import Dropout

STEM = 16
WIDTHS = (32, 64, 128)
GRID = 4
"""Side of the last feature map that the embedding sees: position matters, as faces are aligned."""


class Block(nn.Module):
    """shortcut(x) + BatchNorm(conv 3×3(PReLU(BatchNorm(conv 3×3(x))))).

    There is no activation after the sum (He et al. 2016b), as in ArcFace's networks. A block that changes the
    shape has a 1×1 convolution with BatchNorm as its shortcut.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.act = nn.PReLU(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        changed = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return changed + self.shortcut(x)  # type: ignore[no-any-return]


class SmallResNet(nn.Module):
    """Maps whitened faces [B,3,H,W] of at least 32×32 to features [B, embedding].

    A 3×3 convolution of stride 2 to 16 channels, and six residual blocks of 32, 32, 64, 64, 128 and 128
    channels that halve the size three times. The last map is averaged to 4×4 cells, which is its own size for
    faces of 64 px, and mapped linearly, with BatchNorm, to the embedding. With 256 dimensions, it has 1.2
    million parameters and takes 26 million multiplications per face of 64 px.
    """

    def __init__(self, embedding: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(STEM), nn.PReLU(STEM)
        )
        widths = [STEM, *WIDTHS]
        blocks: list[nn.Module] = []
        for channels, out in zip(widths, WIDTHS, strict=False):
            blocks += [Block(channels, out, 2), Block(out, out, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(WIDTHS[-1])
        features = WIDTHS[-1] * GRID**2
        self.dropout = Dropout(features, dropout)
        self.embedding = nn.Linear(features, embedding, bias=False)
        self.embedding_norm = nn.BatchNorm1d(embedding)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.norm(self.blocks(self.stem(x))), GRID)
        return self.embedding_norm(self.embedding(self.dropout(x.flatten(1))))  # type: ignore[no-any-return]
