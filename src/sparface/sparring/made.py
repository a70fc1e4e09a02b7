"""What all forms of sparring have in common: faces that are made from others, at random or by a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparface.kernels.whiten import whiten
from sparface.models.sae import Encoder, GeneratorConfig


@dataclass(frozen=True)
class Source:
    """Faces of which sparring faces are made."""

    faces: Tensor
    """[n,3,H,W] in [0,1]."""
    positions: Tensor
    """int64 [n], in the stream."""
    strength: Tensor | None = None
    """Scalar or [n] in (0,1], a factor on area or magnitude; None: 1."""


class Made:
    """Sparring faces [n,3,H,W] in [0,1], the faces that they are made of, and what changed."""

    def __init__(self, source: Tensor, face: Tensor, mask: Tensor | None = None) -> None:
        """`mask` [n,1,H,W] in [0,1] says where the faces are changed; None: everywhere."""
        self.source, self._face, self.mask = source, face, mask

    @property
    def face(self) -> Tensor:
        """The sparring faces [n,3,H,W]."""
        return self._face

    def whitened(self, real: Tensor, dtype: torch.dtype) -> Tensor:
        """Whiten faces `real` [m,3,H,W], then the sparring faces: [m+n,3,H,W]."""
        return whiten(torch.cat([real, self.face]), dtype)

    def penalty(self, of_norm: float, of_area: float, free: float) -> Tensor:
        """Weighted sum of the norm of the change and of the mask's area above `free`, if nothing else bounds
        them."""
        return self.source.new_zeros(())

    def lesson(self, damage: Tensor) -> Tensor | None:
        """Return the loss of a generator that learns from the damage [n] that its faces did; None if it
        learns from the gradient at its faces. Over all processes, the damage has mean 0 and variance 1."""
        return None

    def metrics(self) -> dict[str, Tensor]:
        """Means over the faces, without gradient."""
        change = (self.face.detach() - self.source).abs().mean()
        area = {} if self.mask is None else {"mask_mean": self.mask.detach().mean()}
        return {"perturbation_mean": change, **area}

    def pictures(self) -> dict[str, Tensor]:
        """Pictures of what changed, each [n,3,H,W] in [0,1]."""
        return {} if self.mask is None else {"mask": self.mask.expand_as(self.source)}


class Form(ABC):
    """A family of changes to a face, with bounds."""

    pictures: ClassVar[Mapping[str, str]]
    """Picture of `Made.pictures` → caption."""
    by_outcome: ClassVar[bool] = False
    """Whether the generator learns from the damage of its faces (`Made.lesson`). Otherwise it learns from the
    gradient at the faces."""

    def __init__(self, seed: int, generator: GeneratorConfig) -> None:
        """Random draws depend on `seed`; `generator` are the settings of the generator for `learned`."""
        self.seed, self.generator = seed, generator

    @classmethod
    @abstractmethod
    def build(cls, config: GeneratorConfig) -> Encoder:
        """Build the generator that `learned` needs."""

    @classmethod
    @abstractmethod
    def identity(cls, config: GeneratorConfig) -> list[str | int]:
        """What determines the generator's shape and the meaning of its outputs."""

    @abstractmethod
    def random(self, source: Source, number: int = 0) -> Made:
        """Draw the changes at random; `number` tells several draws of the same faces apart."""

    @abstractmethod
    def learned(self, generator: nn.Module, source: Source, early: Tensor | None = None) -> Made:
        """Let a generator choose the changes, except where `early` [n] is True: there they are random."""


def select(drawn: Sequence[Made], chosen: Tensor) -> Made:
    """Take face i from draw `chosen[i]`; `chosen` is int64 [n]."""
    rows = torch.arange(len(chosen), device=chosen.device)
    masks = [made.mask for made in drawn if made.mask is not None]
    mask = torch.stack(masks)[chosen, rows] if masks else None
    return Made(drawn[0].source, torch.stack([made.face for made in drawn])[chosen, rows], mask)


def per_face(values: Tensor) -> Tensor:
    """Reshape [n] to [n,1,1,1]."""
    return values.view(-1, 1, 1, 1)
