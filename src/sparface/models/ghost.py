"""BatchNorm with statistics over groups of faces (ghost batches; Hoffer et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparface.kernels.normalise import moments
from sparface.models.batchnorm import JointBatchNorm, figures, kinds_of, track


class GhostBatchNorm(JointBatchNorm):
    """BatchNorm with statistics over groups of faces.

    In training mode, a batch is divided into `groups` equal parts, in its order, and each part is normalised
    by its own mean and variance. If every process has whole groups of the global batch, output and gradients
    are the same for any number of processes, without an exchange between them.

    Running statistics follow the mean over the groups (of their unbiased variances). That is linear, so the
    mean over the processes of their buffers is the buffer of a single process.
    """

    def __init__(self, norm: _BatchNorm, groups: int) -> None:
        super().__init__(norm)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.real is None:
            return super().forward(input)
        if 2 * self.real == len(input):
            return self._divided(input, [self], 2 * self.groups)
        kinds = input[: self.real], input[self.real :]
        return torch.cat([self.joint(kind, [self]) for kind in kinds])

    def joint(self, x: Tensor, norms: Sequence[JointBatchNorm]) -> Tensor:
        return self._divided(x, norms, len(norms) * self.groups)

    def _divided(self, x: Tensor, norms: Sequence[JointBatchNorm], groups: int) -> Tensor:
        """Normalise a batch of so many groups. Raises ValueError if it cannot be divided."""
        if len(x) % groups:
            raise ValueError(f"a batch of {len(x)} cannot be divided into {groups} groups for BatchNorm")
        with torch.no_grad():
            mean, variance = moments(x, groups)
        count = x.numel() // mean.numel()
        if self.track_running_stats:
            means, variances = (of.view(len(norms), -1, of.shape[1]).mean(1) for of in (mean, variance))
            track(norms, means, variances, count)
        return self.normalised(x, figures(norms, mean, variance), count, synced=False)


def statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of a network's ghost norms."""
    ghosts = [norm for norm in kinds_of(network).joint if isinstance(norm, GhostBatchNorm)]
    every = ((norm.running_mean, norm.running_var) for norm in ghosts)
    return [figure for both in every for figure in both if figure is not None]
