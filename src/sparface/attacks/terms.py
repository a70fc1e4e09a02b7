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


@dataclass(frozen=True)
class Embedded:
    """Unit embeddings of real and sparring faces, of this process [b,E] and of all processes [B,E]."""

    real: Tensor
    sparring: Tensor
    all_real: Tensor
    all_sparring: Tensor
    labels: Tensor
    """int64 [b], of this process."""
    all_labels: Tensor
    own: Tensor
    """bool [b,B], whether a real face has the same identity."""
    itself: Tensor
    """bool [b,B], whether a real face is this very face."""
    real_cosines: Tensor | None
    """[b, identities], cosines to the identity head's directions; None without a head."""
    sparring_cosines: Tensor | None


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
            return objectives.untargeted(embedded.sparring, embedded.all_real, embedded.own)


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


class ZeroSum(AttackTerm):
    """Maximise the recognizer's loss."""

    opposes = True

    def __call__(self, embedded: Embedded, recognition: Callable[[], Tensor]) -> Tensor:
        return -recognition()


Attack = Literal["untargeted", "targeted", "zero_sum"]
TERMS: dict[Attack, type[AttackTerm]] = {
    "untargeted": Untargeted,
    "targeted": Targeted,
    "zero_sum": ZeroSum,
}
