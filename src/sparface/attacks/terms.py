"""What a generator of sparring faces minimises: its attack on the recognizer."""

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
    """Unit embeddings of real and attacked faces: this process's [b,E] and everyone's [B,E]."""

    real: Tensor
    sparring: Tensor
    all_real: Tensor
    all_sparring: Tensor
    labels: Tensor
    """int64 [b], this process's."""
    all_labels: Tensor
    own: Tensor
    """bool [b,B], which of all real faces are of each face's identity."""
    itself: Tensor
    """bool [b,B], which of all real faces each face is."""
    real_cosines: Tensor | None
    """[b, identities], to the identity head's directions, where there is a head."""
    sparring_cosines: Tensor | None


class AttackTerm(ABC):
    """One attack on embeddings, for a training set of so many identities."""

    opposes: ClassVar[bool] = False
    """Whether it is exactly the opposite of the recognizer's loss, so that reversing that loss's gradient
    gives this one's."""

    def __init__(self, config: Config, identities: int) -> None:
        """For settings that `check` has passed."""
        self.config, self.identities = config, identities

    @classmethod
    def check(cls, config: Config, *, head: bool) -> None:
        """Raise `UserError` for settings under which the attack has no aim; `head`: whether there is an
        identity head."""

    @abstractmethod
    def __call__(self, embedded: Embedded, recognition: Callable[[], Tensor]) -> Tensor:
        """The scalar to be minimised; `recognition` computes the recognizer's loss."""


class Untargeted(AttackTerm):
    """Nearer to another identity of the batch than to the own one."""

    @classmethod
    def check(cls, config: Config, *, head: bool) -> None:
        if config.data.identities_per_batch < 2:
            raise UserError(
                "sparring.attack: untargeted needs another identity in the batch; "
                "set data.identities_per_batch to 2 or more"
            )

    def __call__(self, embedded: Embedded, recognition: Callable[[], Tensor]) -> Tensor:
        with torch.autocast(embedded.labels.device.type, enabled=False):
            return objectives.untargeted(embedded.sparring, embedded.all_real, embedded.own)


class Targeted(AttackTerm):
    """Onto one certain other identity for each, always the same, so that a generator, which is not told, can
    learn it. Every identity is the target of one other."""

    def __init__(self, config: Config, identities: int) -> None:
        super().__init__(config, identities)
        self.aim = 1 + random.Random(config.training.seed).randrange(max(1, identities - 1))
        """From an identity to its target: so many further on, round the end."""

    @classmethod
    def check(cls, config: Config, *, head: bool) -> None:
        if not head:
            raise UserError(
                "sparring.attack: targeted needs an identity head; "
                "set objective.cross_entropy or objective.arcface above 0"
            )

    def target(self, labels: Tensor) -> Tensor:
        """The identity that each identity is made to look like."""
        return (labels + self.aim) % self.identities

    def __call__(self, embedded: Embedded, recognition: Callable[[], Tensor]) -> Tensor:
        assert embedded.sparring_cosines is not None
        return objectives.targeted(embedded.sparring_cosines, self.target(embedded.labels))


class ZeroSum(AttackTerm):
    """Simply the opposite of the recognizer's loss."""

    opposes = True

    def __call__(self, embedded: Embedded, recognition: Callable[[], Tensor]) -> Tensor:
        return -recognition()


Attack = Literal["untargeted", "targeted", "zero_sum"]
TERMS: dict[Attack, type[AttackTerm]] = {
    "untargeted": Untargeted,
    "targeted": Targeted,
    "zero_sum": ZeroSum,
}
