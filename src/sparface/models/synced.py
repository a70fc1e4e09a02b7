"""BatchNorm with statistics over the batches of all processes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sparface.kernels.normalise import moments
from sparface.models.batchnorm import JointBatchNorm, figures, track

# not every supported torch has the new name
warnings.filterwarnings("ignore", message="`torch.distributed.all_gather_into_tensor` is deprecated")


class SyncedBatchNorm(JointBatchNorm):
    """BatchNorm with statistics over the batches of all processes, which must have the same size.

    Output, gradients and running statistics (unbiased variance with the global count) equal those of
    BatchNorm in a single process over the whole batch. Forward and backward use one collective each, on any
    device. (`torch.nn.SyncBatchNorm` does not support CPU tensors and synchronises with the GPU at every
    norm, to check for empty batches.)
    """

    def joint(self, x: Tensor, norms: Sequence[JointBatchNorm]) -> Tensor:
        processes = dist.get_world_size()
        if processes == 1:
            parts = zip(norms, x.chunk(len(norms)), strict=True)
            own = [_BatchNorm.forward(norm, part) for norm, part in parts]
            return self.act(self.drop(own[0] if len(own) == 1 else torch.cat(own)))
        mean, variance = _global_moments(x, len(norms))
        count = x.numel() // mean.numel() * processes
        if self.track_running_stats:
            track(norms, mean, variance, count)
        return self.normalised(x, figures(norms, mean, variance), count, synced=True)


@torch.no_grad()
def _global_moments(x: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The mean [n,C] and biased variance [n,C] of n parts over all processes, bitwise equal on each process.

    The variance is the mean of the processes' variances plus the variance of their means, which avoids
    cancellation.
    """
    own = torch.stack(moments(x, parts))
    gathered = own.new_empty(dist.get_world_size() * own.numel())
    dist.all_gather_into_tensor(gathered, own.view(-1))
    means, variances = gathered.view(-1, *own.shape).unbind(1)
    variance, mean = torch.var_mean(means, 0, correction=0)
    return mean, variance.add_(variances.mean(0))
