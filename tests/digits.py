"""A small classifier of digits, for attacks on logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sparface.attacks.goal import Goal, of_classifier


@dataclass(frozen=True)
class Digits:
    """A trained classifier, and images [256,3,16,16] in [0,1] that it has not seen."""

    network: nn.Module
    images: Tensor
    labels: Tensor

    def goal(self, count: int = 256) -> Goal:
        return Goal(of_classifier(self.network), self.labels[:count])

    def right(self, images: Tensor) -> int:
        """How many of the first images are classified correctly."""
        return int((self.network(images).argmax(1) == self.labels[: len(images)]).sum())
