"""What a recipe is: a system of the field in one class, which says of itself all that others must know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from sparface.augment import classic
from sparface.config import Config, Policy
from sparface.errors import UserError

Metrics = dict[str, Tensor]
"""Detached scalars, still on the device."""
Role = Literal["recognizer", "classifier", "generator", "purifier"]
"""What a finished network is for: a recognizer makes unit embeddings [B,E] of faces [B,3,H,W] in [0,1], a
classifier logits [B,C] of them, a generator sparring faces (see `SAE`), a purifier cleaned faces."""

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
    every: int = 1
    """Take part in each so-manieth step; the first step has all phases."""
    inner_gradients: str = ""
    """For a loss that itself takes gradients (`torch.autograd.grad`), which ZeRO stage 3 cannot do: what to
    set instead."""


@dataclass(frozen=True)
class Rule:
    """Something to watch: a metric's mean over a logging interval that leaves its bounds.

    `below` may be computed from the other means. `message` is a format string of `value`, `bound` and the
    names of metrics.
    """

    kind: str
    """Name of the event."""
    metric: str
    policy: Policy
    message: str
    above: float | None = None
    below: float | Callable[[Mapping[str, float]], float] | None = None


@dataclass(frozen=True)
class Finished:
    """How the trained network of a role is made from a configuration and its weights."""

    network: str
    """Name in `Recipe.networks`."""
    build: Callable[[Config], nn.Module]
    """Without pretrained weights, which would only be overwritten."""
    state: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state
    """From the state that was trained to the one that `build`'s network loads."""
    exported: Callable[[nn.Module], dict[str, Tensor]] = lambda network: network.state_dict()
    """The weights as other programs want them."""


class Recipe(ABC):
    """What is trained and how one step goes; knows no ranks, checkpoints or trackers.

    A subclass fills `networks` in its constructor and says the rest in class attributes. `networks` is looked
    up at every call, so that a strategy may wrap them; a wrapper is called once a phase.
    """

    blocks: ClassVar[Mapping[str, type]] = {}
    """Its own settings: name of the block in YAML → dataclass whose fields all have defaults."""
    identities: ClassVar[int] = 0
    """The least number of identities that the training set must have."""
    finished: ClassVar[Mapping[Role, Finished]] = {}
    """What its networks are for when they are trained. A `recognizer` is validated while it trains."""
    captions: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """For the report: group of charts → metric → what it is, in the order in which they are shown."""
    pictures: ClassVar[Mapping[str, str]] = {}
    """For the report: picture of `preview` → caption, in order."""

    headline: ClassVar[Sequence[str]] = ("loss",)
    """Metrics that the lines of progress show."""

    networks: dict[str, nn.Module]
    """Name → network that is trained."""

    def __init__(self, config: Config, identities: int) -> None:
        """For a training set of so many identities, with `check` passed."""
        self.config, self.identity_count = config, identities
        self.networks = {}
        self.frozen: dict[str, nn.Module] = {}
        """Modules that are used or filled, but not trained; checkpoints hold them."""
        self.gather: Callable[[Tensor], Tensor] = lambda local: local
        """[b, …] of this process → [B, …] of all, in order. Differentiable: its backward sums the
        gradients of all processes. One process: the identity."""
        self.scale: Callable[[Tensor], Tensor] = lambda loss: loss
        """A loss at the scale at which gradients are computed: it keeps small ones of fp16 from vanishing."""

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise `UserError` for settings that cannot work together."""

    @classmethod
    def identity(cls, config: Config) -> dict[str, Any]:
        """What a checkpoint must agree with to fit the networks of a configuration; JSON."""
        return {}

    @abstractmethod
    def phases(self) -> list[Phase]:
        """The updates of one step, in order."""

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        """Images worth looking at, each [n,3,H,W] in [0,1]; changes nothing, needs no other process."""
        return {}

    def rules(self) -> list[Rule]:
        """What to watch besides losses and gradients that are not finite."""
        return []

    def learning_rate(self, network: str) -> float:
        """A network's learning rate before schedule and rollbacks."""
        return self.config.optimizer.learning_rate


def require_identities(recipe: type[Recipe], name: str, identities: int) -> None:
    """Raise `UserError` for a training set with fewer identities than the recipe needs."""
    if identities < recipe.identities:
        raise UserError(
            f"data.shards: the set has {identities} identit{'y' if identities == 1 else 'ies'}; "
            f"the recipe {name} needs at least {recipe.identities}"
        )


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
