"""The networks of a GAN from noise: a generator, and a discriminator that also names people.

Both follow DCGAN (Radford et al. 2016) and, for the identities, AC-GAN (Odena et al. 2017).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from sparface.config import number
from sparface.models.classifier import Head
from sparface.randomness import normal

SMALLEST = 8
"""Side of the smallest faces, in pixels."""
_COARSEST = 4
"""Least side of the coarsest feature maps."""
_WIDEST = 8
"""The most channels, as a multiple of the width."""
_SLOPE = 0.2
_START = 0.02
"""Standard deviation of the generator's first weights."""


@dataclass
class NoiseGanConfig:
    """A GAN that makes faces from noise."""

    loss: Literal["non_saturating", "minimax"] = "non_saturating"
    """The generator's loss. `minimax`: log(1 − D), as the game is stated. `non_saturating`: −log D, whose
    gradient does not vanish while the discriminator rejects all made faces (both Goodfellow et al. 2014)."""
    conditional: bool = True
    """The generator is told whom to show, which labelled sets (`sparface generate`) need. Otherwise it makes
    faces of nobody in particular."""
    width: int = number(32, above=0, most=128)
    """Channels of the finest layers of both networks; the coarsest have up to eight times as many."""
    latent: int = number(128, above=0, most=1024)
    """Numbers of noise that a face is made from."""
    embedding: int = number(64, above=0, most=1024)
    """Numbers that describe an identity to the generator."""
    identity_weight: float = number(1.0)
    """Weight of the cross-entropy over identities: of real faces for the discriminator, and of made ones for
    a conditional generator."""
    spectral_norm: bool = True
    """Bound the discriminator's slope by spectral normalisation (Miyato et al. 2018)."""
    r1: float = number(1.0)
    """Weight γ of the R1 penalty: γ/2 times the squared gradient of the discriminator at real faces, in face
    units [0, 1] (Mescheder et al. 2018). 0: none."""
    r1_every: int = number(8, above=0, most=10**6)
    """Steps between two updates with the penalty, whose weight makes up for it (Karras et al. 2020)."""
    augmentation: bool = True
    """Show the discriminator real and made faces with the same kind of random light, colour, shift and patch,
    through which the generator's gradient passes (Zhao et al. 2020). It matters with few faces."""
    discriminator_learning_rate: float = number(2e-4)
    """The discriminator's learning rate; `optimizer.learning_rate` is the generator's."""


class Identities(nn.Embedding):
    """A learned vector for each identity: labels int64 [B] → [B,E].

    Loading the weights of another number of identities changes its size, as `Head` does.
    """

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        count = len(weight) if isinstance(weight, Tensor) and weight.dim() == 2 else self.num_embeddings
        if count != self.num_embeddings:  # otherwise, an optimizer may hold the tensor
            self.num_embeddings = count
            self.weight = nn.Parameter(self.weight.new_empty(count, self.embedding_dim))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class NoiseGenerator(nn.Module):
    """Maps noise [B,L] and labels int64 [B] to faces [B,3,H,W] in [0,1].

    Transposed convolutions with BatchNorm and ReLU double the side from 4 to 7 pixels up to that of the face
    or more, which is cropped. `identities` is None if it is not conditional; labels are ignored then.
    """

    def __init__(self, config: NoiseGanConfig, size: int, identities: int) -> None:
        super().__init__()
        self.size, self.latent = size, config.latent
        self.identities = Identities(identities, config.embedding) if config.conditional else None
        doublings, start = steps(size)
        given = config.latent + (config.embedding if config.conditional else 0)
        widths = [config.width * min(2**level, _WIDEST) for level in reversed(range(doublings))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(given, widths[0], start, bias=False)]
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.BatchNorm2d(wide), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False))
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, stride=2, padding=1))
        for layer in self.layers:
            if isinstance(layer, nn.ConvTranspose2d):  # as DCGAN: larger ones leave a pattern for long
                nn.init.normal_(layer.weight, std=_START)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        if self.identities is not None:
            noise = torch.cat([noise, self.identities(labels)], 1)
        made = self.layers(noise[:, :, None, None])[..., : self.size, : self.size]
        return torch.sigmoid(made.to(torch.promote_types(made.dtype, torch.float32)))


class Discriminator(nn.Module):
    """Maps faces [B,3,H,W] in [0,1] to logits [B,C] over identities, and tells real from made ones.

    A feature extractor of convolutions that halve the side, with LeakyReLU, and two linear heads. It has no
    BatchNorm, whose statistics would let the faces of a batch judge each other.
    """

    def __init__(self, config: NoiseGanConfig, size: int, identities: int) -> None:
        super().__init__()
        bound = spectral_norm if config.spectral_norm else _unbounded
        halvings, _ = steps(size)
        widths = [config.width * min(2**level, _WIDEST) for level in range(halvings)]
        self.bounded: nn.ModuleList = nn.ModuleList(
            bound(nn.Conv2d(channels, width, 4, stride=2, padding=1))
            for channels, width in zip([3, *widths], widths, strict=False)
        )
        features = widths[-1] * (size >> halvings) ** 2
        self.realness = bound(nn.Linear(features, 1))
        self.identity = Head(features, identities)

    def forward(self, x: Tensor, *, realness: bool = False) -> Any:
        """Compute logits [B,C] over identities; with `realness`, (logits [B] of being real, those)."""
        features = self.features(x)
        logits = self.identity(features)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not realness:
            return logits
        real = self.realness(features)[:, 0]
        return real.to(torch.promote_types(real.dtype, torch.float32)), logits

    def features(self, x: Tensor) -> Tensor:
        """Extract features [B,F]."""
        x = x * 2 - 1
        with parametrize.cached():
            with torch.autocast(x.device.type, enabled=False):  # power iteration needs full precision
                for layer in (*self.bounded, self.realness):
                    _ = layer.weight
            for layer in self.bounded:
                x = nn.functional.leaky_relu(layer(x), _SLOPE)
        return x.flatten(1)


def steps(size: int) -> tuple[int, int]:
    """How often the generator doubles the side, and from which side, for faces of `size` pixels."""
    doublings = (size // _COARSEST).bit_length() - 1
    return doublings, -(-size // (1 << doublings))


def draw_noise(latent: int, seed: int, positions: Tensor, stream: int) -> Tensor:
    """Draw standard normal noise [B, latent] for `positions` int64 [B], by `sparface.randomness`."""
    return normal(seed, positions, (latent,), stream).to(torch.get_default_dtype())


def _unbounded(layer: nn.Module) -> nn.Module:
    return layer
