"""The `Recipe` base class: one training method in one class, with all that the rest of the package needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from sparface.config import Config, Policy
from sparface.errors import UserError
from sparface.models.weights import load_into, read_weights_file, weights_path
from sparface.shards.labels import IDENTITY
from sparface.variation import vary

Metrics = dict[str, Tensor]
"""Detached scalars, still on the device."""
Gather = Callable[..., tuple[Tensor, ...]]
"""See `Recipe.gather`."""
Role = Literal["recognizer", "classifier", "generator", "purifier"]
"""What a trained network is for. From faces [B,3,H,W] in [0,1], a recognizer computes unit embeddings [B,E],
a classifier logits [B,C], a generator sparring faces (see `SAE`), and a purifier cleaned faces. Instead,
a generator may make faces from noise [B,L] and labels [B] (see `NoiseGenerator`)."""


RECOGNIZER = "recognizer"
"""Name in `Recipe.frozen` of the recognizer that `Recipe.uses_recognizer` names."""


class FaceBatch(Protocol):
    """One process's part of a batch."""

    images: Tensor
    """uint8 [b,3,H,W]."""
    labels: Tensor
    """int64 [b], what the recipe's `label` names."""
    positions: Tensor
    """int64 [b], position of each face in the stream."""


class AllFaces(Protocol):
    """The faces of the training set, to go through before the first step."""

    count: int

    def total(self, part: Callable[[Tensor], Tensor], /) -> Tensor:
        """Return the sum of a function of batches uint8 [n,3,H,W] over all faces (collective).

        The batches and the order in which they are summed do not depend on the number of processes. The
        function must take an empty batch. Raises `UserError` on all processes for a broken face.
        """


@dataclass(frozen=True)
class Phase:
    """One update: a loss on a batch, and the networks that it trains."""

    name: str
    updates: tuple[str, ...]
    loss: Callable[[FaceBatch], tuple[Tensor, Metrics]]
    """Returns the scalar to call backward on, and the metrics to log."""
    every: int = 1
    """Run in every n-th step only. All phases run in the first step."""
    inner_gradients: str = ""
    """Set this if the loss calls `torch.autograd.grad`, which ZeRO stage 3 does not support: a hint for the
    error message on what to set instead."""


@dataclass(frozen=True)
class Rule:
    """Bounds on a metric's mean over a logging interval; leaving them is an anomaly.

    `below` may be computed from the other means. `message` is a format string that may use `value`, `bound`
    and metric names.
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
    """How to build the trained network of a role from a configuration and weights."""

    network: str
    """Name in `Recipe.networks`."""
    build: Callable[[Config], nn.Module]
    """Builds the network, untrained."""
    state: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state
    """Converts the trained state dict to that of the network from `build`."""
    exported: Callable[[nn.Module], dict[str, Tensor]] = lambda network: network.state_dict()
    """Returns the weights in the layout that other programs load."""
    imported: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda state: state
    """Converts weights in that layout to the state dict of the network from `build`."""
    frozen: tuple[str, ...] = ()
    """Names in `Recipe.frozen` of parts of the network from `build` that have the same names there."""


class Recipe(ABC):
    """A training method. It knows nothing of ranks, checkpoints or trackers.

    Subclasses fill `networks` in the constructor and set the class attributes. Look up `networks` at every
    use, as a strategy may replace its entries.
    """

    blocks: ClassVar[Mapping[str, type]] = {}
    """The recipe's settings: name of the YAML block → dataclass whose fields all have defaults."""
    label: ClassVar[str] = IDENTITY
    """What the labels of a batch number: the `identity` of each face, or a column of the training set such as
    `expression`."""
    identities: ClassVar[int] = 0
    """Minimum number of identities in the training set, or of the other classes that `label` names."""
    finished: ClassVar[Mapping[Role, Finished]] = {}
    """The networks that are useful after training, by role. A `recognizer` or a `classifier` is validated
    during training."""
    captions: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """For the report, in display order: group of charts → metric → caption."""
    pictures: ClassVar[Mapping[str, str]] = {}
    """For the report, in display order: picture of `preview` → caption."""

    headline: ClassVar[Sequence[str]] = ("loss",)
    """Metrics shown in the progress lines."""

    networks: dict[str, nn.Module]
    """The trained networks by name."""

    def __init__(self, config: Config, classes: int) -> None:
        """Build the networks for a training set of so many identities, or other classes that `label` names.
        The config must have passed `check`."""
        self.config = config
        self.networks = {}
        self.frozen: dict[str, nn.Module] = {}
        """Modules that are used or updated but not trained by gradients; saved in checkpoints."""
        self.gather: Gather = lambda *local: local
        """Gathers each of several tensors [b, …] from every process into [B, …], in rank order, all in one
        exchange. Differentiable: backward sums the gradients of all processes. On a single process, returns
        the tensors themselves."""
        self.meet: Callable[[], None] = lambda: None
        """Averages the networks' BatchNorm statistics over the processes (collective). For steps in which a
        network that is trained runs in evaluation mode; elsewhere, the trainer does it."""
        self.scale: Callable[[Tensor], Tensor] = lambda loss: loss
        """Scales a loss as the gradient scaler does, to keep small fp16 gradients from underflowing."""

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise `UserError` for incompatible settings."""

    @classmethod
    def identity(cls, config: Config) -> dict[str, Any]:
        """Return the settings that determine the networks' shapes, as JSON; a checkpoint must match them."""
        return {}

    @classmethod
    def roles(cls, config: Config) -> Mapping[Role, Finished]:
        """Return those of `finished` that are trained with these settings."""
        return cls.finished

    @classmethod
    def uses_recognizer(cls, config: Config) -> str:
        """Return the recognizer that training uses but does not change: a run or a file; empty if none.

        It is `frozen["recognizer"]`, in evaluation mode, from before `begin`.
        """
        return ""

    def begin(self, start: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Load the weights that a new run starts from, by network; called before the strategy wraps anything.

        Raises `UserError` naming `source` if they do not fit.
        """
        for name, state in start.items():
            load_into(self.networks[name], state, source)

    def read_weights(self, source: str) -> Mapping[str, Mapping[str, Tensor]]:
        """Read weights that are not of a run, which `training.start_from` names; returns them by network.

        Raises `UserError` if they cannot be read, or if the recipe cannot start from them.
        """
        if weights_path(source).is_dir():
            raise UserError(
                f"{source}: not a run (no config.yaml); give the --out folder of `sparface train`"
            )
        if (made := self.finished.get("recognizer")) is None:
            raise UserError(
                f"training.start_from: {source} is for a recognizer, which this recipe does not train"
            )
        return {made.network: made.imported(read_weights_file(source))}

    def learn(self, every: AllFaces) -> None:
        """Compute what a new run needs to know of all faces, into `frozen`; called after `begin`."""

    @abstractmethod
    def phases(self) -> list[Phase]:
        """Return the updates of one step, in order."""

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        """Return pictures of training by name, each [n,3,H,W] in [0,1].

        Must not change any state or communicate with other processes.
        """
        return {}

    def rules(self) -> list[Rule]:
        """Return what to watch in addition to non-finite losses and gradients."""
        return []

    def learning_rate(self, network: str) -> float:
        """Return a network's learning rate, before the schedule and rollbacks are applied."""
        return self.config.optimizer.learning_rate


def require_classes(recipe: type[Recipe], name: str, classes: int) -> None:
    """Raise `UserError` if the training set has fewer identities (or other classes) than the recipe needs."""
    if classes < recipe.identities:
        kind = (
            ("identity" if classes == 1 else "identities")
            if recipe.label == IDENTITY
            else (f"class{'' if classes == 1 else 'es'} of {recipe.label}")
        )
        raise UserError(
            f"data.shards: the set has {classes} {kind}, "
            f"but the recipe {name} needs at least {recipe.identities}; use a larger set"
        )


def rows_of(positions: Tensor, everyone: Tensor) -> Tensor:
    """Find the rows of faces at int64 [b] positions among the positions of the faces of all processes [B]."""
    ordered, order = everyone.sort()
    return order[torch.searchsorted(ordered, positions)]


def faces(config: Config, batch: FaceBatch) -> Tensor:
    """Return the batch's faces [b,3,H,W] in [0,1], varied as configured (`data.variation`)."""
    x = batch.images.to(torch.get_default_dtype()) / 255
    data = config.data
    x = vary(x, data.variation, config.training.seed, batch.positions, data.variation_strength)
    return x.contiguous(memory_format=torch.channels_last)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context manager: the network is in evaluation mode, and gradients are disabled. Afterwards each of its
    modules is in the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def viewable(whitened: Tensor) -> Tensor:
    """Map whitened faces to [0,1] for display, clipped at ±3 standard deviations."""
    return (whitened / 6 + 0.5).clamp(0, 1)
