"""BatchNorm on a batch of n equal parts, each with separate statistics and weights.

`Figures` holds the parameters of the n parts; a batch x is [n·b,C] or [n·b,C,H,W] with the parts one after
the other. `relu`, which only the fused kernels support, adds a ReLU after the norm; the backward recomputes
its sign from x.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparface.kernels.common import Figures
from sparface.kernels.dispatch import fused


def moments(x: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The mean [n,C] and biased variance [n,C] of each part, at least float32."""
    if not fused(x):
        # BatchNorm's kernel is much faster than var_mean. The zero statistics are not changed; without them,
        # the kernel would round its results to the dtype of a bf16 batch.
        blank = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        of_parts = [torch.batch_norm_update_stats(part, blank, blank, 0.0) for part in x.chunk(parts)]
        means, variances = zip(*of_parts, strict=True)
        return torch.stack(means), torch.stack(variances)
    zeros = x.new_zeros(parts, x.shape[1], dtype=torch.float32)
    ones, count = zeros + 1, x.numel() // zeros.numel()
    mean = gradient_sums(x, x, Figures(zeros, ones, ones, zeros, 0.0))[:, 1] / count
    # Σ x·(x − mean): the mean's rounding error is all that could cancel
    squares = gradient_sums(x, x, Figures(mean, ones, ones, zeros, 0.0))[:, 0]
    return mean, (squares / count).clamp_min_(0)


def normalise(x: Tensor, by: Figures, relu: bool = False) -> Tensor:
    """Normalise `x`; the result has the same dtype and is channels-last if it has four dimensions."""
    if fused(x):
        from sparface.kernels.normalise_triton import normalise

        return normalise(x, by, relu)
    assert not relu
    result, unused = torch.empty_like(x), by.mean.new_empty(0)
    for out, (part, mean, variance, weight, bias) in zip(
        result.chunk(len(by.mean)), _parts(x, by), strict=True
    ):
        torch.ops.aten.native_batch_norm.out(
            *(part, weight, bias, mean, variance, False, 0.0, by.eps),
            out=out, save_mean=unused, save_invstd=unused,
        )  # fmt: skip
    return result


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
    n, result = len(by.mean), torch.empty_like(x)
    for out, part, g, a, s, o in zip(
        result.chunk(n), x.chunk(n), gradient.chunk(n), gain, slope, offset, strict=True
    ):
        a, s, o = (figure.view(1, -1, *[1] * (x.dim() - 2)) for figure in (a, s, o))
        if out.dtype == o.dtype:
            torch.addcmul(o, part, s, out=out).addcmul_(g, a)
        else:
            out.copy_(torch.addcmul(o, part, s).addcmul_(g, a))
    return result


def _parts(x: Tensor, by: Figures) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Iterate over the parts of the batch with their mean, variance, weight and bias."""
    return zip(x.chunk(len(by.mean)), by.mean, by.variance, by.weight, by.bias, strict=True)
