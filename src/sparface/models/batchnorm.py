"""BatchNorm over two kinds of faces (split) and over all processes (synced), and with frozen statistics.

Both conversions compose: split first, then synced.
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
from facenet_pytorch.models.inception_resnet_v1 import BasicConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm

from sparface.kernels.common import Figures
from sparface.kernels.dispatch import fused
from sparface.kernels.normalise import gradient_sums, input_gradient, joined, normalise
from sparface.models.sae import ResidualBlock

# its new name is not there in every torch that we support
warnings.filterwarnings("ignore", message="`torch.distributed.all_gather_into_tensor` is deprecated")

IN_ORDER = (nn.Sequential, BasicConv2d, ResidualBlock)
"""Modules whose children run one after the other, as they are listed."""


class SplitBatchNorm(nn.Module):
    """A BatchNorm for real faces and an auxiliary one for sparring faces (AdvProp, Xie et al. 2020).

    In training inside `parts(…, 2)` the first half of the batch goes through `main` and the second
    through `auxiliary`, each with its own statistics, scale and shift. Otherwise all go through `main`.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.main = norm
        self.auxiliary = copy.deepcopy(norm)
        self.parts = 1
        self.together = True
        """Whether synced norms exchange their statistics in one collective, without calling the norms."""

    def forward(self, x: Tensor) -> Tensor:
        main, auxiliary = self.main, self.auxiliary
        if self.parts == 1 or not self.training:
            return main(x)  # type: ignore[no-any-return]
        if self.together and isinstance(main, SyncedBatchNorm) and isinstance(auxiliary, SyncedBatchNorm):
            return synced(x, [main, auxiliary])
        real, sparring = x.chunk(2)
        return torch.cat([main(real), auxiliary(sparring)])


def split_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm inside a module by a `SplitBatchNorm`, in place."""
    return _replace(module, SplitBatchNorm)


@contextmanager
def parts(module: nn.Module, count: int) -> Iterator[None]:
    """Inside, a batch holds `count` equal parts: 1 (faces of one kind) or 2 (real, then sparring)."""
    norms = _kinds(module).split
    for norm in norms:
        norm.parts = count
    try:
        yield
    finally:
        for norm in norms:
            norm.parts = 1


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it would be without `split_batchnorm`: the main statistics, without the auxiliary."""
    return {key.replace(".main.", "."): value for key, value in state.items() if ".auxiliary." not in key}


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, forwards in training mode use batch statistics but change no buffer.

    BatchNorm's running statistics and spectral norm's vectors stay as they are, so that a network
    that is run twice in one step is counted once.
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
    """Modules inside a network, by what they are."""

    split: list[SplitBatchNorm]
    norms: list[_BatchNorm]
    spectral: list[_SpectralNorm]


_KNOWN: WeakKeyDictionary[nn.Module, _Kinds] = WeakKeyDictionary()
"""What `_kinds` has found: walking through a large network takes milliseconds, several times a step."""


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
    """BatchNorm whose batch statistics are those of all processes' batches together.

    Forward, backward and running statistics (unbiased variance with the global count) equal one
    process's BatchNorm over the whole batch. One collective forward, one backward, on any device.
    (`torch.nn.SyncBatchNorm` refuses CPU tensors, and waits for the GPU at every norm: it leaves out
    empty batches, which it must look for.)
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.__dict__["_parameters"] = norm._parameters
        self.__dict__["_buffers"] = norm._buffers
        self.training = norm.training
        # timm's BatchNormAct has an activation of its own; others are given theirs by `sync_batchnorm`
        self.drop: Callable[[Tensor], Tensor] = getattr(norm, "drop", nn.Identity())
        self.act: Callable[[Tensor], Tensor] = getattr(norm, "act", nn.Identity())

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        return synced(input, [self])


def synced(x: Tensor, norms: Sequence[SyncedBatchNorm]) -> Tensor:
    """A batch of equal parts, each through its own norm, with one collective forward and one backward.

    The norms have the same settings and the same activation. Every process's batch has the same size.
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
    """Of n parts mean [n,C] and biased variance [n,C] over all processes, the same bits on each.

    The variance is the mean of the processes' variances and the variance of their means: no difference of
    large sums.
    """
    # BatchNorm's own kernel, much faster than var_mean. The statistics that it would update stay zero;
    # without them it would round to the type of a bf16 batch.
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
    """`normalise` where mean and variance depend on every process's x."""

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
    """Replace every BatchNorm inside a module by one over all processes; parameters stay the same objects.

    Where a ReLU is known to come next, the norm takes it over: fused kernels do both at once.
    """
    module = _replace(module, SyncedBatchNorm)
    for parent in module.modules():
        if isinstance(parent, IN_ORDER):
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
