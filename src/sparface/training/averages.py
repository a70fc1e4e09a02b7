"""Exponential moving average (EMA) of the weights, used for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparface.sharded import local

RAMP = 0.05
"""The half-life is at most this share of the images seen."""
STATISTICS = ("running_mean", "running_var")
State = dict[str, dict[str, Tensor]]


class WeightAverage:
    """Exponential moving average of networks, with a half-life in images seen.

    The half-life grows with the images seen up to the configured value (as in EDM, Karras et al. 2022);
    otherwise the average would include untrained weights and be worse than the live ones for a long time.

    Parameters and BatchNorm statistics are averaged, since statistics of the live weights do not fit averaged
    weights. Other buffers (counters, vectors of the spectral norm) are copied, since an average of unit
    vectors is not a unit vector. `tensors` has the keys of the networks' state dicts.
    """

    def __init__(self, networks: Mapping[str, nn.Module], half_life: int) -> None:
        self.half_life = half_life
        self.live = {name: network.state_dict() for name, network in networks.items()}
        self.averaged = {name: averaged(network) for name, network in networks.items()}
        self.tensors: State = {
            name: {key: tensor.detach().clone() for key, tensor in state.items()}
            for name, state in self.live.items()
        }

    @property
    def statistics(self) -> list[Tensor]:
        """The averages of running means and variances."""
        averages = self.tensors.values()
        return [value for average in averages for key, value in average.items() if key.endswith(STATISTICS)]

    @torch.no_grad()
    def update(self, images: int, images_seen: int) -> None:
        """Move the average towards the networks after `images` more images, `images_seen` in total."""
        weight = 1 - 0.5 ** (images / min(self.half_life, RAMP * images_seen))
        for name, average in self.tensors.items():
            live, keys = self.live[name], self.averaged[name]
            torch._foreach_lerp_(
                [local(average[key]) for key in keys], [local(live[key]) for key in keys], weight
            )
            for key in average.keys() - keys:
                local(average[key]).copy_(local(live[key]))

    @contextmanager
    @torch.no_grad()
    def applied(self, name: str) -> Iterator[None]:
        """Context manager: the network has its averaged weights."""
        live, average = self.live[name], self.tensors[name]
        kept = {key: local(tensor).clone() for key, tensor in live.items()}
        for key, tensor in live.items():
            local(tensor).copy_(local(average[key]))
        try:
            yield
        finally:
            for key, tensor in live.items():
                local(tensor).copy_(kept[key])


def averaged(network: nn.Module) -> set[str]:
    """Names of a network's parameters and of its running means and variances."""
    names = {name for name, _ in network.named_parameters()}
    buffers = (name for name, _ in network.named_buffers())
    return names | {name for name in buffers if name.endswith(STATISTICS)}
