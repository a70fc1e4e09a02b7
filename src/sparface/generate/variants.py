"""Make variants of source faces. All randomness depends only on (seed, key, variant number, attempt)."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparface.generate.settings import GenerateConfig
from sparface.randomness import uniform
from sparface.shards.format import Face
from sparface.shards.set import ShardSet
from sparface.variation import vary

STRENGTH_STREAM = 4
ORIGINALS_STREAM = 5
"""Streams of `sparface.randomness`; the variation uses 1, noise 2 and targets 3."""


Judge = Callable[[Tensor], Tensor]
"""Faces [B,3,H,W] in [0,1] → unit embeddings [B,E]."""


@dataclass(frozen=True)
class Variant:
    """One draw of one variant."""

    row: int
    """Index of its source in the block."""
    number: int
    """Variant number, from 1; 0 is the source itself."""
    attempt: int = 0


@dataclass(frozen=True)
class Block:
    """Source faces on the device, with precomputed values that their variants share."""

    places: Sequence[int]
    """Indices of the faces in the source set."""
    faces: list[Face]
    x: Tensor
    """[S,3,H,W] in [0,1]."""
    codes: Tensor | None
    """[S,…], if all variants of a source share a first part of the work."""
    embeddings: Tensor | None
    """[S,E] by the judge, if a judge is used."""


@dataclass(frozen=True)
class Drawing:
    """A batch of variants to draw."""

    block: Block
    variants: Sequence[Variant]
    rows: Tensor
    """int64 [B], indices of their sources in the block."""
    positions: Tensor
    """int64 [B], for `sparface.randomness`."""
    x: Tensor
    """[B,3,H,W] in [0,1], the sources, varied."""
    strength: Tensor
    """[B], ε, or a factor on area or magnitude."""


@dataclass(frozen=True)
class Made:
    """A batch of drawn variants, on the device."""

    images: Tensor
    """uint8 [B,H,W,3]."""
    strength: Tensor
    """[B], ε, or a factor on area or magnitude."""
    target: list[str | None]
    """Key of the face that each variant was moved towards, or None."""
    mask: Tensor
    """[B], mean of the mask, before it is raised to the floor."""


class Maker(ABC):
    """Makes variants of the faces of a set."""

    verb: ClassVar[str] = "generate"
    """The verb of the command line that makes them."""
    provenance: dict[str, str | None]
    """Digests of the networks that determine the variants."""

    def __init__(self, settings: GenerateConfig, sources: ShardSet, device: torch.device) -> None:
        self.settings, self.sources, self.device = settings, sources, device
        self.labels = torch.from_numpy(sources.owners)

    def described(self) -> dict[str, Any]:
        """The settings that determine the variants, for provenance."""
        return dataclasses.asdict(self.settings)

    def label(self, place: int) -> int:
        """Return the label of a face of the source set."""
        return int(self.labels[place])

    def floats(self, images: Tensor) -> Tensor:
        """Convert uint8 [B,H,W,3] to faces [B,3,H,W] in [0,1] on the device."""
        return images.to(self.device).permute(0, 3, 1, 2).float() / 255

    @torch.no_grad()
    def block(self, places: Sequence[int], faces: list[Face], judge: Judge | None) -> Block:
        """Prepare source faces; with a `judge`, also their embeddings."""
        x = self.floats(pixels(faces)).contiguous(memory_format=torch.channels_last)
        codes = self.codes(x) if self.settings.variation == "none" else None
        return Block(places, faces, x, codes, None if judge is None else self.in_batches(judge, x))

    def codes(self, x: Tensor) -> Tensor | None:
        """Compute what all variants of a face share, if anything."""
        return None

    def in_batches(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run in batches of equal size, as float results depend on the shape; pads with the last face."""
        size = self.settings.batch_size
        full = torch.cat([x, x[-1:].expand(-len(x) % size, *x.shape[1:])])
        return torch.cat([network(full[i : i + size]) for i in range(0, len(full), size)])[: len(x)]

    @torch.no_grad()
    def make(self, block: Block, drawn: Sequence[Variant]) -> Made:
        """Draw variants [B]. The same batch gives the same bits; another batch may round differently."""
        rows = torch.tensor([variant.row for variant in drawn], device=self.device)
        positions = self.positions(block, drawn)
        x = vary(block.x[rows], self.settings.variation, self.settings.seed, positions)
        x = x.contiguous(memory_format=torch.channels_last)
        strength = self._strength(positions)
        face, mask, targets = self.change_faces(Drawing(block, drawn, rows, positions, x, strength))
        images = (face * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return Made(images, strength, targets, mask)

    @abstractmethod
    def change_faces(self, drawing: Drawing) -> tuple[Tensor, Tensor, list[str | None]]:
        """Return the variants [B,3,H,W] in [0,1], the mean of each mask [B], and the keys of targets."""

    @torch.no_grad()
    def cosine_to_source(self, judge: Judge, block: Block, drawn: Sequence[Variant], made: Made) -> Tensor:
        """Return the cosines [B] to the sources, by the judge that the block was prepared with."""
        assert block.embeddings is not None
        rows = torch.tensor([variant.row for variant in drawn], device=self.device)
        return (judge(self.floats(made.images)) * block.embeddings[rows]).sum(1)

    def change(self, block: Block, drawn: Sequence[Variant], made: Made) -> Tensor:
        """Return the mean |variant − source| [B], in grey levels (0 … 255)."""
        rows = torch.tensor([variant.row for variant in drawn], device=self.device)
        return (self.floats(made.images) - block.x[rows]).abs().mean((1, 2, 3)) * 255

    def figures(self, block: Block, drawn: Sequence[Variant], made: Made) -> dict[str, Tensor]:
        """Return further figures of variants for the report, each [B]; their means are shown."""
        return {}

    def positions(self, block: Block, drawn: Sequence[Variant]) -> Tensor:
        """Hash (key, variant number, attempt) to positions int64 [B] for `sparface.randomness`."""
        names = [f"{block.faces[v.row].key} {v.number} {v.attempt}" for v in drawn]
        digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names)
        return torch.from_numpy(np.frombuffer(digests, "<i8").copy()).to(self.device)

    def _strength(self, positions: Tensor) -> Tensor:
        low, high = self.settings.strengths
        return low + (high - low) * uniform(self.settings.seed, positions, 1, STRENGTH_STREAM)[:, 0]


def pixels(faces: Sequence[Face]) -> Tensor:
    """Stack the images of faces as uint8 [B,H,W,3]."""
    return torch.from_numpy(np.stack([face.image for face in faces]))
