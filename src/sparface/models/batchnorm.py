"""BatchNorm variants: split for two kinds of faces, synced over all processes, with frozen statistics.

The two conversions compose: first split, then synced.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm

from sparface.kernels.common import Figures
from sparface.kernels.dispatch import fused
from sparface.kernels.normalise import gradient_sums, input_gradient, joined, normalise
from sparface.models.sae import ResidualBlock

# not every supported torch has the new name
warnings.filterwarnings("ignore", message="`torch.distributed.all_gather_into_tensor` is deprecated")

IN_ORDER = (nn.Sequential, ResidualBlock)
"""Modules that run their children sequentially in order, as do the blocks of FaceNet."""
_FACENET_BLOCK = "BasicConv2d"
"""By name: importing facenet-pytorch takes seconds, which most networks can do without."""


class SplitBatchNorm(nn.Module):
    """A BatchNorm for real faces and an auxiliary one for sparring faces (AdvProp, Xie et al. 2020).

    In training mode inside `parts(…, n)`, the first n faces of the batch go through `main` and the others
    through `auxiliary`, with separate statistics, scale and shift. Otherwise, all faces go through `main`.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.main = norm
        self.auxiliary = copy.deepcopy(norm)
        self.real: int | None = None
        self.together = True
        """Whether synced norms share one collective for their statistics, bypassing the norms' forward. It
        needs as many real as sparring faces."""

    def forward(self, x: Tensor) -> Tensor:
        main, auxiliary = self.main, self.auxiliary
        if self.real is None or not self.training:
            return main(x)  # type: ignore[no-any-return]
        halves = self.together and 2 * self.real == len(x)
        if halves and isinstance(main, SyncedBatchNorm) and isinstance(auxiliary, SyncedBatchNorm):
            return synced(x, [main, auxiliary])
        return torch.cat([main(x[: self.real]), auxiliary(x[self.real :])])


def split_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in a module with a `SplitBatchNorm`, in place."""
    return _replace(module, SplitBatchNorm)


@contextmanager
def parts(module: nn.Module, real: int) -> Iterator[None]:
    """Context in which the first `real` faces of a batch are real, and the others are sparring faces."""
    norms = _kinds(module).split
    for norm in norms:
        norm.real = real
    try:
        yield
    finally:
        for norm in norms:
            norm.real = None


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict to the one without `split_batchnorm`, which has only the main norms."""
    return {key.replace(".main.", "."): value for key, value in state.items() if ".auxiliary." not in key}


def plain_key(key: str) -> str:
    """Return the key in `plain_state` that a key of a network with split BatchNorm corresponds to."""
    return key.replace(".main.", ".").replace(".auxiliary.", ".")


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Context in which forward passes in training mode use batch statistics but don't update buffers.

    BatchNorm's running statistics and spectral norm's vectors don't change, so a network that runs twice in a
    step updates them only once.
    """
    kinds = _kinds(module)
    norms = [norm for norm in kinds.norms if norm.track_running_stats]
    spectral = [weight for weight in kinds.spectral if weight.training]
    for norm in norms:
        norm.track_running_stats = False
    for weight in spectral:
        weight.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for weight in spectral:
            weight.training = True


@dataclass(frozen=True)
class _Kinds:
    """The modules of a network by type."""

    split: list[SplitBatchNorm]
    norms: list[_BatchNorm]
    spectral: list[_SpectralNorm]


_KNOWN: WeakKeyDictionary[nn.Module, _Kinds] = WeakKeyDictionary()
"""Cache of `_kinds`: it is called several times per step, and traversing a network takes milliseconds."""


def _kinds(network: nn.Module) -> _Kinds:
    if network not in _KNOWN:
        modules = list(network.modules())
        _KNOWN[network] = _Kinds(
            [m for m in modules if isinstance(m, SplitBatchNorm)],
            [m for m in modules if isinstance(m, _BatchNorm)],
            [m for m in modules if isinstance(m, _SpectralNorm)],
        )
    return _KNOWN[network]


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm with statistics over the batches of all processes.

    Output, gradients and running statistics (unbiased variance with the global count) equal those of
    BatchNorm in a single process over the whole batch. Forward and backward use one collective each, on any
    device. (`torch.nn.SyncBatchNorm` does not support CPU tensors and synchronises with the GPU at every
    norm, to check for empty batches.)
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.__dict__["_parameters"] = norm._parameters
        self.__dict__["_buffers"] = norm._buffers
        self.training = norm.training
        # timm's BatchNormAct includes an activation; `sync_batchnorm` adds one to other norms
        self.drop: Callable[[Tensor], Tensor] = getattr(norm, "drop", nn.Identity())
        self.act: Callable[[Tensor], Tensor] = getattr(norm, "act", nn.Identity())

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        return synced(input, [self])


def synced(x: Tensor, norms: Sequence[SyncedBatchNorm]) -> Tensor:
    """Apply one norm to each equal part of a batch, with one collective in forward and one in backward.

    The norms must have the same settings and activation, and the batches of all processes the same size.
    """
    norm, processes = norms[0], dist.get_world_size()
    if not norm.training or processes == 1:
        parts = x.chunk(len(norms))
        own = joined([_BatchNorm.forward(norm, part) for norm, part in zip(norms, parts, strict=True)])
        return norm.act(norm.drop(own))
    mean, variance = _global_moments(x.chunk(len(norms)))
    count = x.numel() // mean.numel() * processes
    if norm.track_running_stats:
        _track(norms, mean, variance, count)
    if norm.affine:
        weight, bias = torch.stack([n.weight for n in norms]), torch.stack([n.bias for n in norms])
    else:
        weight, bias = torch.ones_like(mean), torch.zeros_like(mean)
    relu = fused(x) and isinstance(norm.act, nn.ReLU) and isinstance(norm.drop, nn.Identity)
    normed: Tensor = _Normalise.apply(x, mean, variance, weight, bias, norm.eps, count, relu)
    return normed if relu else norm.act(norm.drop(normed))


@torch.no_grad()
def _global_moments(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean [n,C] and biased variance [n,C] of n parts over all processes, bitwise equal on each process.

    The variance is the mean of the processes' variances plus the variance of their means, which avoids
    cancellation.
    """
    # BatchNorm's kernel is much faster than var_mean. The zero statistics are not changed; without them, the
    # kernel would round its results to the dtype of a bf16 batch.
    blank = parts[0].new_zeros(parts[0].shape[1], dtype=torch.promote_types(parts[0].dtype, torch.float32))
    own = torch.cat([f for part in parts for f in torch.batch_norm_update_stats(part, blank, blank, 0.0)])
    gathered = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(gathered, own)
    means, variances = gathered.view(-1, len(parts), 2, len(blank)).unbind(2)
    variance, mean = torch.var_mean(means, 0, correction=0)
    return mean, variance.add_(variances.mean(0))


@torch.no_grad()
def _track(norms: Sequence[SyncedBatchNorm], means: Tensor, variances: Tensor, count: int) -> None:
    unbiased = variances * (count / (count - 1))
    for norm, mean, variance in zip(norms, means, unbiased, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        rate: Any = norm.momentum
        if rate is None:  # the mean of all batches
            rate = norm.num_batches_tracked.to(norm.running_mean.dtype).reciprocal()
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
        norm.running_var.lerp_(variance.to(norm.running_var.dtype), rate)


class _Normalise(torch.autograd.Function):
    """`normalise` with a backward for mean and variance that depend on the x of every process."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        count: int,
        relu: bool,
    ) -> Tensor:
        ctx.eps, ctx.count, ctx.relu = eps, count, relu
        ctx.save_for_backward(x, mean, variance, weight, bias)
        return normalise(x, Figures(mean, variance, weight, bias, eps), relu)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, variance, weight, bias = ctx.saved_tensors
        by = Figures(mean, variance, weight, bias, ctx.eps)
        own = gradient_sums(gradients[0], x, by, ctx.relu)
        means = own / ctx.count
        dist.all_reduce(means)
        d_x = input_gradient(gradients[0], x, by, means, ctx.relu)
        return d_x, None, None, own[:, 0], own[:, 1], None, None, None


def sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in a module with a `SyncedBatchNorm` that shares its parameters and buffers.

    A ReLU that is known to follow is merged into the norm, because fused kernels can do both at once.
    """
    module = _replace(module, SyncedBatchNorm)
    for parent in module.modules():
        if isinstance(parent, IN_ORDER) or type(parent).__name__ == _FACENET_BLOCK:
            _take_over_activations(parent)
    return module


def _take_over_activations(parent: nn.Module) -> None:
    for (_, norm), (name, following) in itertools.pairwise(list(parent.named_children())):
        norms = [norm.main, norm.auxiliary] if isinstance(norm, SplitBatchNorm) else [norm]
        if isinstance(following, nn.ReLU) and all(isinstance(n, SyncedBatchNorm) for n in norms):
            for each in norms:
                each.act = following
            setattr(parent, name, nn.Identity())


def _replace(module: nn.Module, convert: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    _KNOWN.clear()
    if isinstance(module, _BatchNorm):
        return convert(module)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, convert))
    return module
