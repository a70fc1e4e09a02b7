"""BatchNorm over two kinds of faces (split) and over all processes (synced), and with frozen statistics.

Both conversions compose: split first, then synced.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm

# its new name is not there in every torch that we support
warnings.filterwarnings("ignore", message="`torch.distributed.all_gather_into_tensor` is deprecated")


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

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean += rate * (mean.to(self.running_mean.dtype) - self.running_mean)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_var += rate * (unbiased.to(self.running_var.dtype) - self.running_var)


def synced(inputs: Sequence[Tensor], norms: Sequence[SyncedBatchNorm]) -> list[Tensor]:
    """Each input through its own norm, with one collective forward and one backward for all of them."""
    group = norms[0].group
    if not norms[0].training or dist.get_world_size(group) == 1:
        normed = [_BatchNorm.forward(norm, x) for x, norm in zip(inputs, norms, strict=True)]
    else:
        tensors: list[Tensor | None] = []
        for x, norm, moments in zip(inputs, norms, _global_moments(inputs, group), strict=True):
            if norm.track_running_stats:
                norm._track(*moments)
            tensors += [x, norm.weight, norm.bias, *moments]
        normed = _Normalise.apply(group, [norm.eps for norm in norms], *tensors)
    return [norm.act(norm.drop(x)) for x, norm in zip(normed, norms, strict=True)]


@torch.no_grad()
def _global_moments(
    inputs: Sequence[Tensor], group: dist.ProcessGroup | None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each input the mean [C], biased variance [C] and count [] over all processes, the same bits on each.

    Every process's own mean and variance are combined (Chan et al. 1979): no difference of large sums.
    """
    own = torch.cat([figure for x in inputs for figure in _moments(x)])
    gathered = own.new_empty(dist.get_world_size(group) * len(own))
    dist.all_gather_into_tensor(gathered, own, group=group)
    ranks = gathered.view(-1, len(own))
    found = []
    for part in torch.split(ranks, [2 * x.shape[1] + 1 for x in inputs], dim=1):
        channels = part.shape[1] // 2
        means, variances, counts = part[:, :channels], part[:, channels:-1], part[:, -1:]
        count = counts.sum()
        share = counts / count
        mean = (means * share).sum(0)
        found.append((mean, ((variances + (means - mean) ** 2) * share).sum(0), count))
    return found


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and count [1] of this process's part."""
    blank = x.new_zeros(2, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    # BatchNorm's own kernel, much faster than var_mean; `blank` stands for the statistics it would update
    mean, variance = torch.batch_norm_update_stats(x, blank[0], blank[1], 0.0)
    return mean, variance, mean.new_full((1,), x.numel() // x.shape[1])


class _Normalise(torch.autograd.Function):
    """(x − mean)/√(variance + ε)·weight + bias, where mean and variance depend on every process's x.

    Takes x, weight, bias, mean, variance and count of each norm, and returns each norm's result.
    """

    @staticmethod
    def forward(
        ctx: Any, group: dist.ProcessGroup | None, epsilons: list[float], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.epsilons = group, epsilons
        ctx.save_for_backward(*tensors)
        return tuple(
            torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
            for (x, weight, bias, mean, variance, _), eps in zip(_sixes(tensors), epsilons, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        norms = list(zip(gradients, _sixes(ctx.saved_tensors), ctx.epsilons, strict=True))
        # the backward for fixed statistics gives Σ gradient · normed and Σ gradient
        own = [
            torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, variance, None, None, False, eps, [False, True, True]
            )[1:]
            for gradient, (x, weight, _, mean, variance, _), eps in norms
        ]
        total = torch.cat([figure for pair in own for figure in pair])
        dist.all_reduce(total, group=ctx.group)
        totals = torch.split(total, [2 * len(of_weight) for of_weight, _ in own])
        result: list[Tensor | None] = [None, None]
        for (gradient, (x, weight, _, mean, variance, count), eps), pair, sums in zip(
            norms, own, totals, strict=True
        ):
            mean_product, mean_gradient = (sums / count).chunk(2)
            scale = torch.rsqrt(variance + eps)
            gain = scale if weight is None else scale * weight
            # gain · (gradient − mean_gradient − normed · mean_product)
            slope = -gain * scale * mean_product
            d_x = torch.addcmul(_wide(-gain * mean_gradient - slope * mean, x), x, _wide(slope, x))
            d_x = d_x.addcmul_(gradient, _wide(gain, x)).to(x.dtype)
            result += [d_x, *((None, None) if weight is None else pair), None, None, None]
        return tuple(result)


def _sixes(tensors: Sequence[Any]) -> list[Sequence[Any]]:
    return [tensors[i : i + 6] for i in range(0, len(tensors), 6)]


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
