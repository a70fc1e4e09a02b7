"""Simple ways to clean faces [B,3,H,W] in [0,1], to compare a purifier with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparface.shards.codec import decode_into, encode


class Jpeg(nn.Module):
    """Compresses faces as JPEG of a quality, 1 … 100.

    Its gradient is that of the identity (BPDA, Athalye et al. 2018), as that of rounding is 0 everywhere.
    """

    def __init__(self, quality: float) -> None:
        super().__init__()
        self.quality = int(quality)

    def forward(self, x: Tensor) -> Tensor:
        images = (x.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        for image in images:
            decode_into(encode(image, "jpg", self.quality), "jpg", image)
        made = torch.from_numpy(images).to(x.device).permute(0, 3, 1, 2).to(x.dtype) / 255
        return x + (made - x).detach()


class Blur(nn.Module):
    """Blurs faces with a Gaussian of standard deviation `sigma` in pixels."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.transforms.v2.functional import gaussian_blur  # takes a second

        side = 2 * min(math.ceil(3 * self.sigma), min(x.shape[-2:]) - 1) + 1
        blurred: Tensor = gaussian_blur(x, [side, side], [self.sigma, self.sigma])
        return blurred


class TotalVariation(nn.Module):
    """Denoises each channel: the u that minimises ½ ‖u − x‖² + weight · TV(u), isotropic (Rudin, Osher &
    Fatemi 1992), by the fast gradient projection of Beck & Teboulle (2009) on its dual."""

    STEPS = 50

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        dual = ahead = torch.zeros(2, *x.shape, dtype=x.dtype, device=x.device)
        momentum = 1.0
        for _ in range(self.STEPS):
            moved = ahead + _gradient(x - self.weight * _transposed(ahead)) / (8 * self.weight)
            before, dual = dual, moved / moved.square().sum(0).add(1e-12).sqrt().clamp(min=1)
            after = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = dual + (momentum - 1) / after * (dual - before)
            momentum = after
        return (x - self.weight * _transposed(dual)).clamp(0, 1)


def _gradient(u: Tensor) -> Tensor:
    """Differences to the next row and column [2,…,H,W]; 0 at the border."""
    rows = torch.diff(u, dim=-2, append=u[..., -1:, :])
    columns = torch.diff(u, dim=-1, append=u[..., -1:])
    return torch.stack([rows, columns])


def _transposed(dual: Tensor) -> Tensor:
    """The transpose of `_gradient`; the entries of `dual` at the border are 0."""
    rows, columns = dual
    found = torch.diff(-rows, dim=-2, prepend=torch.zeros_like(rows[..., :1, :]))
    return found + torch.diff(-columns, dim=-1, prepend=torch.zeros_like(columns[..., :1]))


RIVALS: dict[str, tuple[type[nn.Module], float, float]] = {
    "jpeg": (Jpeg, 1, 100),
    "blur": (Blur, 0.05, 100),
    "tv": (TotalVariation, 1e-4, 100),
}
"""Name → module, and the range of its only number."""
