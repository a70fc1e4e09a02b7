"""BatchNorm with given statistics on a batch of n equal parts, each with separate statistics and weights.

Synced BatchNorm uses this between its collectives. `Figures` holds the parameters of the n parts; a batch x
is [n·b,C] or [n·b,C,H,W] with the parts one after the other. `relu`, which only the fused kernels support,
adds a ReLU after the norm; the backward recomputes its sign from x.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparface.kernels.common import Figures
from sparface.kernels.dispatch import fused


def normalise(x: Tensor, by: Figures, relu: bool = False) -> Tensor:
    """Normalise `x`; the result has the same dtype and is channels-last if it has four dimensions."""
    if fused(x):
        from sparface.kernels.normalise_triton import normalise

        return normalise(x, by, relu)
    assert not relu
    return joined(
        [
            torch.native_batch_norm(part, weight, bias, mean, variance, False, 0.0, by.eps)[0]
            for part, mean, variance, weight, bias in _parts(x, by)
        ]
    )


def gradient_sums(gradient: Tensor, x: Tensor, by: Figures, relu: bool = False) -> Tensor:
    """Σ gradient·normed and Σ gradient per part and channel [n,2,C]; `normed` excludes weight and bias."""
    if fused(x):
        from sparface.kernels.normalise_triton import gradient_sums

        return gradient_sums(gradient, x, by, relu)
    # these are the weight and bias gradients of BatchNorm with fixed statistics
    sums = [
        torch.ops.aten.native_batch_norm_backward(
            g, part, weight, mean, variance, None, None, False, by.eps, [False, True, True]
        )[1:]
        for g, (part, mean, variance, weight, _) in zip(
            gradient.chunk(len(by.mean)), _parts(x, by), strict=True
        )
    ]
    return torch.stack([figure for pair in sums for figure in pair]).view(len(by.mean), 2, -1)


def input_gradient(gradient: Tensor, x: Tensor, by: Figures, means: Tensor, relu: bool = False) -> Tensor:
    """The gradient of x; `means` [n,2,C] are the `gradient_sums` over all processes divided by the count.

    weight/√(variance + ε) · (gradient − mean gradient − normed · mean product)
    """
    if fused(x):
        from sparface.kernels.normalise_triton import input_gradient

        return input_gradient(gradient, x, by, means, relu)
    scale = torch.rsqrt(by.variance + by.eps)
    gain = scale * by.weight
    mean_product, mean_gradient = means.unbind(1)
    slope = (gain * scale).mul_(mean_product).neg_()
    offset = -(slope * by.mean).addcmul_(gain, mean_gradient)
    n = len(by.mean)
    return joined(
        [
            torch.addcmul(_wide(o, part), part, _wide(s, part)).addcmul_(g, _wide(a, part)).to(x.dtype)
            for part, g, a, s, o in zip(x.chunk(n), gradient.chunk(n), gain, slope, offset, strict=True)
        ]
    )


def _parts(x: Tensor, by: Figures) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Iterate over the parts of the batch with their mean, variance, weight and bias."""
    return zip(x.chunk(len(by.mean)), by.mean, by.variance, by.weight, by.bias, strict=True)


def joined(parts: list[Tensor]) -> Tensor:
    """Concatenate the parts of a batch; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _wide(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (x.dim() - 2))
