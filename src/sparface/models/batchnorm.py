"""BatchNorm over two kinds of faces (split) and over all processes (synced), and with frozen statistics.

Both conversions compose: split first, then synced.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm


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
        if self.parts == 1 or not self.training:
            return self.main(x)  # type: ignore[no-any-return]
        real, sparring = x.chunk(2)
        main, auxiliary = self.main, self.auxiliary
        if self.together and isinstance(main, SyncedBatchNorm) and isinstance(auxiliary, SyncedBatchNorm):
            return torch.cat(synced([real, sparring], [main, auxiliary]))
        return torch.cat([main(real), auxiliary(sparring)])


def split_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm inside a module by a `SplitBatchNorm`, in place."""
    return _replace(module, SplitBatchNorm)


@contextmanager
def parts(module: nn.Module, count: int) -> Iterator[None]:
    """Inside, a batch holds `count` equal parts: 1 (faces of one kind) or 2 (real, then sparring)."""
    norms = [m for m in module.modules() if isinstance(m, SplitBatchNorm)]
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
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    spectral = [m for m in module.modules() if isinstance(m, _SpectralNorm) and m.training]
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


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm whose batch statistics are those of all processes' batches together.

    Forward, backward and running statistics (unbiased variance with the global count) equal one
    process's BatchNorm over the whole batch. One collective forward, one backward; works on any
    backend. `torch.nn.SyncBatchNorm` refuses CPU tensors.
    """

    def __init__(self, norm: _BatchNorm, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.__dict__["_parameters"] = norm._parameters
        self.__dict__["_buffers"] = norm._buffers
        self.group = group
        self.training = norm.training
        # timm's BatchNormAct has an activation of its own
        self.drop: Callable[[Tensor], Tensor] = getattr(norm, "drop", nn.Identity())
        self.act: Callable[[Tensor], Tensor] = getattr(norm, "act", nn.Identity())

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        return synced([input], [self])[0]


def synced(inputs: Sequence[Tensor], norms: Sequence[SyncedBatchNorm]) -> list[Tensor]:
    """Each input through its own norm, with one collective forward and one backward for all of them.

    All inputs have the same shape, and all norms the same settings.
    """
    group = norms[0].group
    if not norms[0].training or dist.get_world_size(group) == 1:
        normed = [_BatchNorm.forward(norm, x) for x, norm in zip(inputs, norms, strict=True)]
    else:
        moments = _global_moments(inputs, group)
        if norms[0].track_running_stats:
            _track(norms, *moments)
        parameters = [p for norm in norms for p in (norm.weight, norm.bias)]
        normed = _Normalise.apply(group, norms[0].eps, *moments, *inputs, *parameters)
    return [norm.act(norm.drop(x)) for x, norm in zip(normed, norms, strict=True)]


@torch.no_grad()
def _global_moments(
    inputs: Sequence[Tensor], group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Over all processes, the same bits on each: of n inputs mean [n,C], biased variance [n,C], count [].

    Every process's own figures are combined (Chan et al. 1979): no difference of large sums.
    """
    channels = inputs[0].shape[1]
    own = [figure for x in inputs for figure in _moments(x)]
    own.append(own[0].new_full((1,), inputs[0].numel() // channels))
    packed = torch.cat(own)
    ranks = packed.new_empty(dist.get_world_size(group), len(packed))
    dist.all_gather(list(ranks), packed, group=group)
    means, variances = ranks[:, :-1].view(len(ranks), len(inputs), 2, channels).unbind(2)
    counts = ranks[:, -1:, None]
    count = counts.sum()
    share = counts / count
    mean = (means * share).sum(0)
    return mean, (means - mean).square_().add_(variances).mul_(share).sum(0), count


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and biased variance [C] of this process's part."""
    blank = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    # BatchNorm's own kernel, much faster than var_mean; `blank` stands for the statistics it would update
    return torch.batch_norm_update_stats(x, blank, blank, 0.0)


@torch.no_grad()
def _track(norms: Sequence[SyncedBatchNorm], means: Tensor, variances: Tensor, count: Tensor) -> None:
    unbiased = variances * (count / (count - 1).clamp(min=1))
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
    """(x − mean)/√(variance + ε)·weight + bias, where mean and variance depend on every process's x.

    Takes mean [n,C], variance [n,C] and count [] over all processes, then the n inputs, then weight
    [C] and bias [C] of each norm; returns each norm's result.
    """

    @staticmethod
    def forward(
        ctx: Any,
        group: dist.ProcessGroup | None,
        eps: float,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.eps = group, eps
        ctx.save_for_backward(mean, variance, count, *tensors)
        inputs, weights, biases = _by_kind(tensors, len(mean))
        return tuple(
            torch.native_batch_norm(x, weight, bias, m, v, False, 0.0, eps)[0]
            for x, weight, bias, m, v in zip(inputs, weights, biases, mean, variance, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mean, variance, count, *tensors = ctx.saved_tensors
        inputs, weights, _ = _by_kind(tensors, len(mean))
        # the backward for fixed statistics gives Σ gradient · normed and Σ gradient
        own = [
            figure
            for gradient, x, weight, m, v in zip(gradients, inputs, weights, mean, variance, strict=True)
            for figure in torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, m, v, None, None, False, ctx.eps, [False, True, True]
            )[1:]
        ]
        total = torch.stack(own)
        dist.all_reduce(total, group=ctx.group)
        mean_product, mean_gradient = (total / count).view(len(mean), 2, -1).unbind(1)
        scale = torch.rsqrt(variance + ctx.eps)
        gain = scale if weights[0] is None else scale * torch.stack(list(weights))
        # gain · (gradient − mean_gradient − normed · mean_product)
        slope = (gain * scale).mul_(mean_product).neg_()
        offset = -(slope * mean).addcmul_(gain, mean_gradient)
        d_inputs = [
            torch.addcmul(_wide(o, x), x, _wide(s, x)).addcmul_(gradient, _wide(g, x)).to(x.dtype)
            for x, gradient, g, s, o in zip(inputs, gradients, gain, slope, offset, strict=True)
        ]
        d_parameters = [None] * len(own) if weights[0] is None else own
        return None, None, None, None, None, *d_inputs, *d_parameters


def _by_kind(tensors: Sequence[Any], n: int) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Inputs, weights and biases of n norms."""
    return tensors[:n], tensors[n::2], tensors[n + 1 :: 2]


def _wide(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (x.dim() - 2))


def sync_batchnorm(module: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Replace every BatchNorm inside a module by one over all processes; parameters stay the same objects.

    On CUDA a plain BatchNorm becomes `torch.nn.SyncBatchNorm`, whose kernels are fused.
    """
    return _replace(module, lambda norm: _synced(norm, group))


def _synced(norm: _BatchNorm, group: dist.ProcessGroup | None) -> nn.Module:
    on_cuda = norm.running_mean is not None and norm.running_mean.is_cuda
    if on_cuda and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm, group)  # type: ignore[no-any-return, no-untyped-call]
    return SyncedBatchNorm(norm, group)


def _replace(module: nn.Module, convert: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return convert(module)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, convert))
    return module
