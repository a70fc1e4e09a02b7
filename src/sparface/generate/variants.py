"""Make variants of source faces. All randomness depends only on (seed, key, variant number, attempt)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sparface.generate.settings import GenerateConfig
from sparface.kernels.synthesize import synthesize
from sparface.models.sae import NOISE_STREAM, SAE
from sparface.randomness import normal, uniform
from sparface.shards.format import Face
from sparface.shards.set import ShardSet
from sparface.variation import vary

TARGET_STREAM = 3
STRENGTH_STREAM = 4
"""Streams of `sparface.randomness`; the variation uses 1 and noise 2, as in training."""
ORIGINALS_STREAM = 5
TARGET_DRAWS = 8
"""Faces drawn as candidates for a target; the first one of another identity is used."""
TARGET_STEPS = 3
TARGET_STEP = 1.0
"""Length of a signed gradient step, in units of the bottleneck."""


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
    """[S,C,h,w], if all variants of a source start from the same code."""
    embeddings: Tensor | None
    """[S,E] by the judge, if a judge is used."""


@dataclass(frozen=True)
class Made:
    """A batch of drawn variants, on the device."""

    images: Tensor
    """uint8 [B,H,W,3]."""
    strength: Tensor
    """[B], ε."""
    target: list[str | None]
    """Key of the face that each variant was moved towards, or None."""
    mask: Tensor
    """[B], mean of the generator's mask before it is raised to the floor."""


class Maker:
    """Makes variants with a generator; `recognizer` is needed only for targeted variants."""

    def __init__(
        self, settings: GenerateConfig, sources: ShardSet, generator: SAE, recognizer: nn.Module | None
    ) -> None:
        self.settings, self.sources = settings, sources
        self.generator, self.recognizer = generator, recognizer
        runs = np.concatenate([shard.runs for shard in sources.manifest.shards])
        self._labels = torch.from_numpy(np.repeat(runs[:, 0], runs[:, 1]))

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def label(self, place: int) -> int:
        """Return the label of a face of the source set."""
        return int(self._labels[place])

    def floats(self, images: Tensor) -> Tensor:
        """Convert uint8 [B,H,W,3] to faces [B,3,H,W] in [0,1] on the device."""
        return images.to(self.device).permute(0, 3, 1, 2).float() / 255

    @torch.no_grad()
    def block(self, places: Sequence[int], faces: list[Face], judge: Judge | None) -> Block:
        """Prepare source faces; with a `judge`, also their embeddings."""
        x = self.floats(pixels(faces)).contiguous(memory_format=torch.channels_last)
        codes = self._in_batches(self.generator.encode, x) if self.settings.variation == "none" else None
        return Block(places, faces, x, codes, None if judge is None else self._in_batches(judge, x))

    def _in_batches(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run in batches of equal size, as float results depend on the shape; pads with the last face."""
        size = self.settings.batch_size
        full = torch.cat([x, x[-1:].expand(-len(x) % size, *x.shape[1:])])
        return torch.cat([network(full[i : i + size]) for i in range(0, len(full), size)])[: len(x)]

    @torch.no_grad()
    def make(self, block: Block, drawn: Sequence[Variant]) -> Made:
        """Draw variants [B]. The same batch gives the same bits; another batch may round differently."""
        rows = torch.tensor([variant.row for variant in drawn], device=self.device)
        positions = self.positions(block, drawn)
        x = block.x[rows]
        if block.codes is None:
            x = vary(x, self.settings.variation, self.settings.seed, positions)
            x = x.contiguous(memory_format=torch.channels_last)
            code = self.generator.encode(x)
        else:
            code = block.codes[rows]
        strength = self._strength(positions)
        if self.settings.noise > 0:
            noise = normal(self.settings.seed, positions, (code.shape[1], 1, 1), NOISE_STREAM)
            code = code + self.settings.noise * noise
        code, targets = self._aim(block, drawn, positions, x, code, strength)
        face, mask = self._face(x, code, strength)
        images = (face * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return Made(images, strength, targets, mask)

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

    def positions(self, block: Block, drawn: Sequence[Variant]) -> Tensor:
        """Hash (key, variant number, attempt) to positions int64 [B] for `sparface.randomness`."""
        names = [f"{block.faces[v.row].key} {v.number} {v.attempt}" for v in drawn]
        digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names)
        return torch.from_numpy(np.frombuffer(digests, "<i8").copy()).to(self.device)

    def _strength(self, positions: Tensor) -> Tensor:
        low, high = self.settings.strengths
        return low + (high - low) * uniform(self.settings.seed, positions, 1, STRENGTH_STREAM)[:, 0]

    def _face(self, x: Tensor, code: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sparring faces [B,3,H,W], and the mean [B] of the masks before they are raised."""
        perturbation, mask = self.generator.decode(code, x.shape[-2], x.shape[-1])
        raised = mask.clamp(min=self.settings.saliency_floor)
        return synthesize(x, perturbation, raised, strength.view(-1, 1, 1, 1)), mask.mean((1, 2, 3))

    def _aim(
        self,
        block: Block,
        drawn: Sequence[Variant],
        positions: Tensor,
        x: Tensor,
        code: Tensor,
        strength: Tensor,
    ) -> tuple[Tensor, list[str | None]]:
        """Move the codes of the targeted share towards faces of other identities.

        The generator takes no target as input, so it is steered at its bottleneck by a few signed gradient
        steps on the cosine between sparring face and target, according to the run's recognizer.
        """
        targets: list[str | None] = [None] * len(drawn)
        chosen = self._targets(block, drawn, positions)
        if not chosen or self.recognizer is None:
            return code, targets
        faces = dict(self.sources.faces_at(chosen.values()))
        for place, target in chosen.items():
            targets[place] = faces[target].key
        at = torch.tensor(list(chosen), device=self.device)
        towards = self.floats(pixels([faces[target] for target in chosen.values()]))
        return code.index_copy(0, at, self._steer(x[at], code[at], strength[at], towards)), targets

    def _steer(self, x: Tensor, code: Tensor, strength: Tensor, towards: Tensor) -> Tensor:
        assert self.recognizer is not None
        target = self.recognizer(towards)
        for _ in range(TARGET_STEPS):
            with torch.enable_grad():
                code = code.detach().requires_grad_()
                cosine = (self.recognizer(self._face(x, code, strength)[0]) * target).sum()
                (gradient,) = torch.autograd.grad(cosine, code)
            code = code.detach() + TARGET_STEP * gradient.sign()
        return code

    def _targets(self, block: Block, drawn: Sequence[Variant], positions: Tensor) -> dict[int, int]:
        """For the targeted share, return index in the batch → index of the target in the source set."""
        if self.settings.targeted == 0:
            return {}
        draws = uniform(self.settings.seed, positions, 1 + TARGET_DRAWS, TARGET_STREAM).cpu()
        places = (draws[:, 1:].double() * len(self._labels)).long()
        own = self._labels[[block.places[variant.row] for variant in drawn]]
        other = self._labels[places] != own[:, None]
        first = other.int().argmax(1)
        wanted = (draws[:, 0] < self.settings.targeted) & other.any(1)
        return {i: int(places[i, first[i]]) for i in wanted.nonzero()[:, 0].tolist()}


def pixels(faces: Sequence[Face]) -> Tensor:
    """Stack the images of faces as uint8 [B,H,W,3]."""
    return torch.from_numpy(np.stack([face.image for face in faces]))
