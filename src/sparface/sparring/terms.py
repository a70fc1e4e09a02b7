"""Attack terms: what a generator of sparring faces minimises against the recognizer."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparface import objectives
from sparface.config import Config
from sparface.errors import UserError
from sparface.kernels.triplet import Others


@dataclass(frozen=True)
class Embedded:
    """Unit embeddings of r real and s sparring faces of this process, and of R and S of all processes."""

    real: Tensor
    """[r,E]."""
    sparring: Tensor
    """[s,E]."""
    real_labels: Tensor
    """int64 [r]."""
    labels: Tensor
    """int64 [s]."""
    all_real: Others
    """R faces, and where the r faces are among them."""
    all_sparring: Others
    """S faces, and where the s faces are among them."""
    own: Tensor
    """bool [s,R], whether a real face has the same identity as a sparring face."""
    itself: Tensor
    """bool [s,R], whether a real face is the source of a sparring face."""
    real_cosines: Tensor | None
    """[r, identities], cosines to the identity head's directions; None without a head."""
    sparring_cosines: Tensor | None
    """[s, identities]."""


class AttackTerm(ABC):
    """An attack on embeddings, for a training set with the given number of identities."""

    opposes: ClassVar[bool] = False
    """Whether the term is exactly the negative recognizer loss, so that gradient reversal can be used."""

    def __init__(self, config: Config, identities: int) -> None:
        """The config must have passed `check`."""

    @classmethod
    def check(cls, config: Config, *, head: bool) -> None:
        """Raise `UserError` if the settings leave the attack no target; `head`: whether an identity head
        exists."""

    @abstractmethod
    def __call__(self, embedded: Embedded, recognition: Callable[[], Tensor]) -> Tensor:
        """Return the scalar to minimise; `recognition` computes the recognizer's loss."""

    @abstractmethod
    def each(self, embedded: Embedded, losses: Callable[[], Tensor]) -> Tensor:
        """Return the value [s] of each sparring face to minimise; `losses` computes the recognizer's loss of
        each. Its mean need not be the value of the call, which may include losses between faces."""


class Untargeted(AttackTerm):
    """Make a face nearer to another identity in the batch than to its own."""

    @classmethod
    def check(cls, config: Config, *, head: bool) -> None:
        if config.data.identities_per_batch < 2:
            raise UserError(
                "sparring.attack: untargeted needs at least two identities in a batch; "
                "set data.identities_per_batch to 2 or more"
            )

    def __call__(self, embedded: Embedded, recognition: Callable[[], Tensor]) -> Tensor:
        with torch.autocast(embedded.labels.device.type, enabled=False):
            return objectives.untargeted(embedded.sparring, embedded.all_real.embeddings, embedded.own)

    def each(self, embedded: Embedded, losses: Callable[[], Tensor]) -> Tensor:
        return objectives.margins(embedded.sparring, embedded.all_real.embeddings, embedded.own)


class Targeted(AttackTerm):
    """Make a face match one fixed other identity.

    The target of an identity never changes, so the generator can learn it without receiving it as input.
    Every identity is the target of exactly one other.
    """

    def __init__(self, config: Config, identities: int) -> None:
        self.identities = identities
        self.aim = 1 + random.Random(config.training.seed).randrange(max(1, identities - 1))
        """Offset from an identity to its target, modulo the number of identities."""

    @classmethod
    def check(cls, config: Config, *, head: bool) -> None:
        if not head:
            raise UserError(
                "sparring.attack: targeted needs an identity head; "
                "set objective.cross_entropy or objective.arcface above 0"
            )

    def target(self, labels: Tensor) -> Tensor:
        """Return the target of each identity."""
        return (labels + self.aim) % self.identities

    def __call__(self, embedded: Embedded, recognition: Callable[[], Tensor]) -> Tensor:
        assert embedded.sparring_cosines is not None
        return objectives.targeted(embedded.sparring_cosines, self.target(embedded.labels))

    def each(self, embedded: Embedded, losses: Callable[[], Tensor]) -> Tensor:
        assert embedded.sparring_cosines is not None
        return -embedded.sparring_cosines.gather(1, self.target(embedded.labels)[:, None])[:, 0]


class ZeroSum(AttackTerm):
    """Maximise the recognizer's loss."""

    opposes = True

    def __call__(self, embedded: Embedded, recognition: Callable[[], Tensor]) -> Tensor:
        return -recognition()

    def each(self, embedded: Embedded, losses: Callable[[], Tensor]) -> Tensor:
        return -losses()


Attack = Literal["untargeted", "targeted", "zero_sum"]
TERMS: dict[Attack, type[AttackTerm]] = {
    "untargeted": Untargeted,
    "targeted": Targeted,
    "zero_sum": ZeroSum,
}
