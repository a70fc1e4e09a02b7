"""BatchNorm variants: split for two kinds of faces, over groups of a batch, with frozen statistics.

The two conversions compose: first split, then ghost.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm

from sparface.kernels.common import Figures
from sparface.kernels.dispatch import fused
from sparface.kernels.normalise import gradient_sums, input_gradient, moments, normalise
from sparface.models.sae import ResidualBlock

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
        """Whether both norms run in the same kernels, bypassing their forward, if there are as many real as
        sparring faces."""

    def forward(self, x: Tensor) -> Tensor:
        main, auxiliary = self.main, self.auxiliary
        if self.real is None or not self.training:
            return main(x)  # type: ignore[no-any-return]
        halves = self.together and 2 * self.real == len(x)
        if halves and isinstance(main, GhostBatchNorm) and isinstance(auxiliary, GhostBatchNorm):
            return ghosts(x, [main, auxiliary], 2 * main.groups)
        return torch.cat([main(x[: self.real]), auxiliary(x[self.real :])])


def split_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in a module with a `SplitBatchNorm`, in place."""
    return _replace(module, SplitBatchNorm)


@contextmanager
def parts(module: nn.Module, real: int) -> Iterator[None]:
    """Context in which the first `real` faces of a batch are real, and the others are sparring faces."""
    kinds = _kinds(module)
    norms: Sequence[SplitBatchNorm | GhostBatchNorm] = kinds.split or kinds.ghost
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
    ghost: list[GhostBatchNorm]
    norms: list[_BatchNorm]
    spectral: list[_SpectralNorm]


_KNOWN: WeakKeyDictionary[nn.Module, _Kinds] = WeakKeyDictionary()
"""Cache of `_kinds`: it is called several times per step, and traversing a network takes milliseconds."""


def _kinds(network: nn.Module) -> _Kinds:
    if network not in _KNOWN:
        modules = list(network.modules())
        _KNOWN[network] = _Kinds(
            [m for m in modules if isinstance(m, SplitBatchNorm)],
            [m for m in modules if isinstance(m, GhostBatchNorm)],
            [m for m in modules if isinstance(m, _BatchNorm)],
            [m for m in modules if isinstance(m, _SpectralNorm)],
        )
    return _KNOWN[network]


class GhostBatchNorm(_BatchNorm):
    """BatchNorm with statistics over groups of faces (ghost batches; Hoffer et al. 2017).

    In training mode, a batch is divided into `groups` equal parts, in its order, and each part is normalised
    by its own mean and variance. If every process has whole groups of the global batch, output and gradients
    are the same for any number of processes, without an exchange between them.

    Running statistics follow the mean over the groups (of their unbiased variances). That is linear, so the
    mean over the processes of their buffers is the buffer of a single process.
    """

    def __init__(self, norm: _BatchNorm, groups: int) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.__dict__["_parameters"] = norm._parameters
        self.__dict__["_buffers"] = norm._buffers
        self.training, self.groups = norm.training, groups
        self.real: int | None = None
        # timm's BatchNormAct includes an activation; `ghost_batchnorm` adds one to other norms
        self.drop: Callable[[Tensor], Tensor] = getattr(norm, "drop", nn.Identity())
        self.act: Callable[[Tensor], Tensor] = getattr(norm, "act", nn.Identity())

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return self.act(self.drop(super().forward(input)))
        if self.real is None:
            return ghosts(input, [self], self.groups)
        if 2 * self.real == len(input):
            return ghosts(input, [self], 2 * self.groups)
        kinds = input[: self.real], input[self.real :]
        return torch.cat([ghosts(kind, [self], self.groups) for kind in kinds])


def ghosts(x: Tensor, norms: Sequence[GhostBatchNorm], groups: int) -> Tensor:
    """Apply one norm in training mode to each equal part of a batch, which together have `groups` groups.

    The norms must have the same settings and activation. Raises ValueError if the batch cannot be divided.
    """
    norm, each = norms[0], groups // len(norms)
    if len(x) % groups:
        raise ValueError(f"a batch of {len(x)} cannot be divided into {groups} groups for BatchNorm")
    with torch.no_grad():
        mean, variance = moments(x, groups)
        count = x.numel() // mean.numel()
        if norm.track_running_stats:
            _track(norms, mean.view(len(norms), each, -1), variance.view(len(norms), each, -1), count)
    if norm.affine:
        weight, bias = (_repeated([getattr(n, name) for n in norms], each) for name in ("weight", "bias"))
    else:
        weight, bias = torch.ones_like(mean), torch.zeros_like(mean)
    relu = fused(x) and isinstance(norm.act, nn.ReLU) and isinstance(norm.drop, nn.Identity)
    normed: Tensor = _Normalise.apply(x, mean, variance, weight, bias, norm.eps, relu)
    return normed if relu else norm.act(norm.drop(normed))


def _repeated(figures: Sequence[Tensor], times: int) -> Tensor:
    """[C] of each norm → [norms × times, C]."""
    return torch.stack([figure.expand(times, -1) for figure in figures]).flatten(0, 1)


@torch.no_grad()
def _track(norms: Sequence[GhostBatchNorm], means: Tensor, variances: Tensor, count: int) -> None:
    """Move running statistics towards the mean over groups [norms, groups, C] of `count` values each."""
    unbiased = variances.mean(1) * (count / max(count - 1, 1))
    for norm, mean, variance in zip(norms, means.mean(1), unbiased, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        rate: Any = norm.momentum
        if rate is None:  # the mean of all batches
            rate = norm.num_batches_tracked.to(norm.running_mean.dtype).reciprocal()
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
        norm.running_var.lerp_(variance.to(norm.running_var.dtype), rate)


class _Normalise(torch.autograd.Function):
    """`normalise` with a backward for mean and variance that depend on the x of their group."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        relu: bool,
    ) -> Tensor:
        ctx.eps, ctx.relu = eps, relu
        ctx.save_for_backward(x, mean, variance, weight, bias)
        return normalise(x, Figures(mean, variance, weight, bias, eps), relu)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, variance, weight, bias = ctx.saved_tensors
        by = Figures(mean, variance, weight, bias, ctx.eps)
        sums = gradient_sums(gradients[0], x, by, ctx.relu)
        means = sums * (mean.numel() / x.numel())
        d_x = input_gradient(gradients[0], x, by, means, ctx.relu)
        return d_x, None, None, sums[:, 0], sums[:, 1], None, None


def ghost_batchnorm(module: nn.Module, groups: int) -> nn.Module:
    """Replace every BatchNorm in a module with a `GhostBatchNorm` that shares its parameters and buffers.

    A ReLU that is known to follow is merged into the norm, because fused kernels can do both at once.
    """
    module = _replace(module, lambda norm: GhostBatchNorm(norm, groups))
    for parent in module.modules():
        if isinstance(parent, IN_ORDER) or type(parent).__name__ == _FACENET_BLOCK:
            _take_over_activations(parent)
    return module


def _take_over_activations(parent: nn.Module) -> None:
    for (_, norm), (name, following) in itertools.pairwise(list(parent.named_children())):
        norms = [norm.main, norm.auxiliary] if isinstance(norm, SplitBatchNorm) else [norm]
        if isinstance(following, nn.ReLU) and all(isinstance(n, GhostBatchNorm) for n in norms):
            for each in norms:
                each.act = following
            setattr(parent, name, nn.Identity())


def statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of a network's ghost norms."""
    return [
        s for norm in _kinds(network).ghost for s in (norm.running_mean, norm.running_var) if s is not None
    ]


def _replace(module: nn.Module, convert: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    _KNOWN.clear()
    if isinstance(module, _BatchNorm):
        return convert(module)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, convert))
    return module
