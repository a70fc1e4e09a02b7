"""The generator: a saliency autoencoder with a perturbation decoder and a mask decoder.

It follows Li, Li & Li ("Facial Recognition Leveraging Generative Adversarial Networks"), who adopt it from
SSAE (Lu et al., ACM MM 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from sparface.config import number
from sparface.randomness import normal

NOISE_STREAM = 2
"""Stream of `sparface.randomness` of the noise at the bottleneck."""


@dataclass
class GeneratorConfig:
    """The saliency autoencoder (SAE)."""

    width: int = number(16, above=0, most=1024)
    """Channels of the first convolution; the trunk has 4 × width."""
    blocks: int = number(6, most=256)
    """Residual blocks in the trunk."""
    noise: float = number(0.0)
    """σ of the Gaussian noise added at the bottleneck. 0: each face has a single sparring face."""
    epsilon: float = number(0.1, most=1)
    """Maximum change of a pixel, in face units [0, 1]."""


class ResidualBlock(nn.Module):
    """x + ReLU(BatchNorm(conv 3×3(x))): a residual block with one convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.relu(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class Decoder(nn.Sequential):
    """Two transposed 3×3 convolutions with BatchNorm + ReLU that double the size, then a 3×3 convolution."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(4 * width, 2 * width, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 3, padding=1),
        )


class Encoder(nn.Module):
    """The part that all generators share: maps faces [B,3,H,W] in [0,1] to a code [B, 4 × width, H/4, W/4].

    With width w: 9×9 conv 3→w, 3×3 stride-2 convs w→2w→4w, three spectrally normalised 3×3 convs of 4w (ReLU
    after each), and `blocks` residual blocks. Faces of any size from 4×4 are padded by reflection to a
    multiple of 4. `noise` (σ) scales the standard normal noise that `code` adds.
    """

    def __init__(self, width: int = 16, blocks: int = 6, noise: float = 0.0) -> None:
        super().__init__()
        self.width, self.noise = width, noise
        self.head = nn.Sequential(
            nn.Conv2d(3, width, 9, padding=4),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        self.spectral = nn.ModuleList(
            spectral_norm(nn.Conv2d(4 * width, 4 * width, 3, padding=1)) for _ in range(3)
        )
        self.blocks = nn.Sequential(*(ResidualBlock(4 * width) for _ in range(blocks)))

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """[C, 1, 1]: one value per channel, because the decoders would average out noise per position."""
        return 4 * self.width, 1, 1

    def code(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode faces [B,3,H,W] in [0,1]; `noise` [B, *noise_shape] is standard normal."""
        code = self.encode(x)
        return code if noise is None else code + self.noise * noise

    def encode(self, x: Tensor) -> Tensor:
        """Compute the code [B, 4 × width, H/4, W/4] of faces [B,3,H,W] in [0,1], without noise."""
        height, width = x.shape[-2:]
        x = self.head(F.pad(x * 2 - 1, (0, -width % 4, 0, -height % 4), mode="reflect"))
        with parametrize.cached():
            with torch.autocast(x.device.type, enabled=False):  # power iteration needs full precision
                for conv in self.spectral:
                    _ = conv.weight
            for conv in self.spectral:
                x = F.relu(conv(x), inplace=True)
        return self.blocks(x)  # type: ignore[no-any-return]


class SAE(Encoder):
    """Saliency autoencoder: maps faces [B,3,H,W] in [0,1] to a perturbation in (−1,1) and a mask in (0,1).

    The code of the `Encoder` goes to two decoders, which end in tanh and sigmoid; both outputs are cropped to
    the original size. With the default width 16 and 6 blocks, it has 406,628 parameters. `epsilon` bounds the
    change of a face by both outputs (see `synthesize`).
    """

    FORM = "epsilon tanh"
    """How outputs are combined into faces; checkpoints with another form are rejected."""

    def __init__(self, width: int = 16, blocks: int = 6, noise: float = 0.0, epsilon: float = 0.1) -> None:
        super().__init__(width, blocks, noise)
        self.epsilon = epsilon
        self.perturbation = Decoder(width, 3)
        self.mask = Decoder(width, 1)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute (perturbation [B,3,H,W], mask [B,1,H,W]); `noise` [B, *noise_shape] is standard normal."""
        return self.decode(self.code(x, noise), x.shape[-2], x.shape[-1])

    def decode(self, code: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Compute (perturbation [B,3,H,W], mask [B,1,H,W]) from a code."""
        perturbation, mask = self.perturbation(code), self.mask(code)
        return (
            torch.tanh(perturbation[..., :height, :width]),
            torch.sigmoid(mask[..., :height, :width]),
        )


def build_generator(config: GeneratorConfig) -> SAE:
    """Build a generator from a config."""
    return SAE(config.width, config.blocks, config.noise, config.epsilon)


def draw_noise(config: GeneratorConfig, seed: int, positions: Tensor) -> Tensor | None:
    """Draw the noise of a generator for faces at `positions` [B]; None if its σ is 0."""
    if config.noise == 0:
        return None
    return normal(seed, positions, (4 * config.width, 1, 1), NOISE_STREAM)
