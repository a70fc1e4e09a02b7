"""BatchNorm variants: split for two kinds of faces, with frozen statistics, and with an activation merged in.

Conversions compose: first split, then `synced` (models/synced.py) or `ghost` (models/ghost.py).
"""

from __future__ import annotations

import copy
import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm

from sparface.kernels.common import Figures
from sparface.kernels.dispatch import fused
from sparface.kernels.normalise import gradient_sums, input_gradient, normalise
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
        """Whether both norms run as one, bypassing their forward, if there are as many real as sparring
        faces."""

    def forward(self, x: Tensor) -> Tensor:
        main, auxiliary = self.main, self.auxiliary
        if self.real is None or not self.training:
            return main(x)  # type: ignore[no-any-return]
        halves = self.together and 2 * self.real == len(x)
        if halves and isinstance(main, JointBatchNorm) and isinstance(auxiliary, JointBatchNorm):
            return main.joint(x, [main, auxiliary])
        return torch.cat([main(x[: self.real]), auxiliary(x[self.real :])])


def split_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in a module with a `SplitBatchNorm`, in place."""
    return _replace(module, SplitBatchNorm)


@contextmanager
def parts(module: nn.Module, real: int) -> Iterator[None]:
    """Context in which the first `real` faces of a batch are real, and the others are sparring faces."""
    kinds = kinds_of(module)
    norms: Sequence[SplitBatchNorm | JointBatchNorm] = kinds.split or kinds.joint
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
    kinds = kinds_of(module)
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
    joint: list[JointBatchNorm]
    norms: list[_BatchNorm]
    spectral: list[_SpectralNorm]


_KNOWN: WeakKeyDictionary[nn.Module, _Kinds] = WeakKeyDictionary()
"""Cache of `kinds_of`: it is called several times per step, and traversing a network takes milliseconds."""


def kinds_of(network: nn.Module) -> _Kinds:
    if network not in _KNOWN:
        modules = list(network.modules())
        _KNOWN[network] = _Kinds(
            [m for m in modules if isinstance(m, SplitBatchNorm)],
            [m for m in modules if isinstance(m, JointBatchNorm)],
            [m for m in modules if isinstance(m, _BatchNorm)],
            [m for m in modules if isinstance(m, _SpectralNorm)],
        )
    return _KNOWN[network]


class JointBatchNorm(_BatchNorm):
    """A BatchNorm that can run together with others of its kind, each on an equal part of a batch.

    It shares the parameters and buffers of the norm that it replaces.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.__dict__["_parameters"] = norm._parameters
        self.__dict__["_buffers"] = norm._buffers
        self.training = norm.training
        self.real: int | None = None
        """In `parts`: how many of the faces are real."""
        # timm's BatchNormAct includes an activation; `join_batchnorm` adds one to other norms
        self.drop: Callable[[Tensor], Tensor] = getattr(norm, "drop", nn.Identity())
        self.act: Callable[[Tensor], Tensor] = getattr(norm, "act", nn.Identity())

    @abstractmethod
    def joint(self, x: Tensor, norms: Sequence[JointBatchNorm]) -> Tensor:
        """Apply one norm in training mode to each equal part of a batch. The norms must have the same
        settings and activation."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return self.joint(input, [self])
        return self.act(self.drop(super().forward(input)))

    def normalised(self, x: Tensor, by: Figures, count: int, *, synced: bool) -> Tensor:
        """`normalise` and the activation. Mean and variance are those of `count` values of x, or with
        `synced`, of the x of all processes."""
        relu = fused(x) and isinstance(self.act, nn.ReLU) and isinstance(self.drop, nn.Identity)
        normed: Tensor = _Normalise.apply(x, *by, count, relu, synced)
        return normed if relu else self.act(self.drop(normed))


def figures(norms: Sequence[JointBatchNorm], mean: Tensor, variance: Tensor) -> Figures:
    """The parameters of equal parts [n,C] of a batch, the same number for each norm."""
    norm, each = norms[0], len(mean) // len(norms)
    if not norm.affine:
        return Figures(mean, variance, torch.ones_like(mean), torch.zeros_like(mean), norm.eps)
    weight, bias = (
        torch.stack([getattr(n, name).expand(each, -1) for n in norms]).flatten(0, 1)
        for name in ("weight", "bias")
    )
    return Figures(mean, variance, weight, bias, norm.eps)


@torch.no_grad()
def track(norms: Sequence[JointBatchNorm], means: Tensor, variances: Tensor, count: int) -> None:
    """Move the running statistics of n norms towards means and biased variances [n,C] of `count` values."""
    unbiased = variances * (count / max(count - 1, 1))
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
    """`normalise` with a backward for mean and variance that depend on x."""

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
        synced: bool,
    ) -> Tensor:
        ctx.eps, ctx.count, ctx.relu, ctx.synced = eps, count, relu, synced
        ctx.save_for_backward(x, mean, variance, weight, bias)
        return normalise(x, Figures(mean, variance, weight, bias, eps), relu)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, variance, weight, bias = ctx.saved_tensors
        by = Figures(mean, variance, weight, bias, ctx.eps)
        own = gradient_sums(gradients[0], x, by, ctx.relu)
        means = own / ctx.count
        if ctx.synced:
            dist.all_reduce(means)
        d_x = input_gradient(gradients[0], x, by, means, ctx.relu)
        return d_x, None, None, own[:, 0], own[:, 1], None, None, None, None


def join_batchnorm(module: nn.Module, convert: Callable[[_BatchNorm], JointBatchNorm]) -> nn.Module:
    """Replace every BatchNorm in a module, in place.

    A ReLU that is known to follow is merged into the norm, because fused kernels can do both at once.
    """
    module = _replace(module, convert)
    for parent in module.modules():
        if isinstance(parent, IN_ORDER) or type(parent).__name__ == _FACENET_BLOCK:
            _take_over_activations(parent)
    return module


def _take_over_activations(parent: nn.Module) -> None:
    for (_, norm), (name, following) in itertools.pairwise(list(parent.named_children())):
        norms = [norm.main, norm.auxiliary] if isinstance(norm, SplitBatchNorm) else [norm]
        if isinstance(following, nn.ReLU) and all(isinstance(n, JointBatchNorm) for n in norms):
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
