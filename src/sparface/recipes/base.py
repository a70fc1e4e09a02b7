"""What a recipe is: networks, and the phases of one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sparface.augment import classic
from sparface.config import Config

Metrics = dict[str, Tensor]
"""Detached scalars, still on the device."""

NOISE_STREAM = 2
TARGET_STREAM = 3
"""Streams of `sparface.randomness`; augmentation has 1."""


class FaceBatch(Protocol):
    """One process's part of a batch."""

    images: Tensor
    """uint8 [b,3,H,W]."""
    labels: Tensor
    """int64 [b]."""
    positions: Tensor
    """int64 [b], of each face in the stream."""


@dataclass(frozen=True)
class Phase:
    """One update: the loss of a batch, and the networks that it trains."""

    name: str
    updates: tuple[str, ...]
    loss: Callable[[FaceBatch], tuple[Tensor, Metrics]]
    """The scalar whose backward gives the gradients, and what is worth logging."""


class Recipe(Protocol):
    """What is trained and how one step goes; knows no ranks, checkpoints or trackers."""

    networks: dict[str, nn.Module]
    """Looked up at every call, so that a strategy may wrap them; a wrapper is called once a phase."""
    gather: Callable[[Tensor], Tensor]
    """[b, …] of this process → [B, …] of all, in order. Differentiable: its backward sums the
    gradients of all processes. One process: the identity."""
    scale: Callable[[Tensor], Tensor]
    """A loss at the scale at which gradients are computed, which keeps small ones of fp16 from vanishing."""

    def phases(self) -> list[Phase]:
        """The updates of one step, in order."""

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        """Images worth looking at, each [n,3,H,W] in [0,1]; changes nothing, needs no other process."""


def alone(local: Tensor) -> Tensor:
    """The gather of one process."""
    return local


def unscaled(loss: Tensor) -> Tensor:
    """The scale of fp32 and bf16."""
    return loss


def bare(network: nn.Module) -> nn.Module:
    """The network inside a strategy's wrapper: a frozen network exchanges no gradients."""
    inner = getattr(network, "module", network)
    assert isinstance(inner, nn.Module)
    return inner


def faces(config: Config, batch: FaceBatch) -> Tensor:
    """The batch's faces [b,3,H,W] in [0,1], augmented if the config says so."""
    x = batch.images.to(torch.get_default_dtype()) / 255
    if config.data.augment == "classic":
        x = classic(x, config.training.seed, batch.positions)
    return x.contiguous(memory_format=torch.channels_last)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in evaluation mode and no gradients are kept."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def viewable(whitened: Tensor) -> Tensor:
    """Whitened faces squeezed into [0,1]: ±3 deviations."""
    return (whitened / 6 + 0.5).clamp(0, 1)
