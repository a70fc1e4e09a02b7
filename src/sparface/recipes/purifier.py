"""Train a purifier: it removes attacks from faces, for a recognizer that is not changed (Ren et al. 2024)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface.config import Config, number
from sparface.errors import UserError
from sparface.models import batchnorm
from sparface.models.eigenfaces import Eigenfaces
from sparface.models.purifier import STREAM, Purifier, Selector, drawn
from sparface.models.recognizer import LEAST_SIZE, SMALL
from sparface.models.weights import load_into
from sparface.randomness import uniform
from sparface.recipes.base import (
    RECOGNIZER,
    AllFaces,
    FaceBatch,
    Finished,
    Metrics,
    Phase,
    Recipe,
    Role,
    Rule,
    evaluating,
    faces,
)
from sparface.sharded import whole
from sparface.sparring.made import per_face

EIGENFACES, COPY = "eigenfaces", "copy"
"""What is frozen besides the recognizer: the basis, and the purifier's moving average."""
CAPTIONS = {
    "loss": "mean cost of a purified face",
    "pixel": "mean squared change of a pixel",
    "kept": "share of the components that are kept",
    "distance": "distance to the embedding of the face (1 − cosine), without attack",
    "attacked_distance": "the same of attacked faces",
    "cells": "cells of the memory in use",
}


@dataclass
class PurifierConfig:
    """The purifier, and how it learns."""

    recognizer: str = ""
    """The recognizer to protect: a run, an export, an ONNX file or a weights file. The run keeps a copy, so
    it is read only once."""
    colour: bool = True
    """Whether purified faces are in colour. Ren et al. use grey ones."""
    components: int = number(1_500, above=0, most=20_000)
    """Number of eigenfaces that a face is made of."""
    selection: Literal["reinforce", "straight_through"] = "reinforce"
    """How the keep-probabilities learn from the random masks. `reinforce`: from their costs, compared with
    the mean cost of the face's masks (Williams 1992); needs no gradient of the recognizer.
    `straight_through`: from the gradient of the cost, as if masks were the probabilities."""
    clones: int = number(25, above=0, most=1_000)
    """Masks drawn for each face in each step."""
    pixel_weight: float = number(1.0)
    """Weight of the mean squared change of the pixels, in the cost of a mask."""
    kept_weight: float = number(3e-3)
    """Cost of each component that is kept."""
    identity_weight: float = number(8.0)
    """Weight of the distance between the embeddings of purified and clean face (1 − cosine)."""
    epsilon: float = number(0.04, most=1)
    """Size of the attack that half of the faces are trained with: one step along the sign of the gradient
    through a moving average of the purifier. 0: no attack."""
    warmup_images: int = number(0)
    """Images before the attack begins."""
    decay: float = number(0.999, most=1)
    """Decay, per step, of the moving averages: of the memory, and of the purifier that is attacked."""


def _build(config: Config) -> Purifier:
    settings = config.block(PurifierConfig)
    space = Eigenfaces(settings.components, config.size, settings.colour)
    return Purifier(Selector(settings.components, settings.decay), space)


def _whole_state(selector: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"selector.{key}": value for key, value in selector.items()}


FINISHED_PURIFIER = Finished("purifier", _build, _whole_state, frozen=(EIGENFACES,))


class PurifierRecipe(Recipe):
    """One phase that updates the selector on faces and on the same faces attacked."""

    blocks: ClassVar[Mapping[str, type]] = {"purifier": PurifierConfig}
    finished: ClassVar[Mapping[Role, Finished]] = {"purifier": FINISHED_PURIFIER}
    captions: ClassVar[Mapping[str, Mapping[str, str]]] = {"Purifier": CAPTIONS}
    pictures: ClassVar[Mapping[str, str]] = {
        "face": "face",
        "purified": "purified face",
        "attacked": "attacked face",
        "attacked_purified": "attacked face, purified",
    }
    headline = ("loss", "kept", "distance", "attacked_distance")

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__(config, classes)
        self.settings = config.block(PurifierConfig)
        made = _build(config)
        self.networks = {"purifier": made.selector}
        self.frozen[EIGENFACES] = made.eigenfaces
        self.frozen[COPY] = copy.deepcopy(made.selector).eval()

    @classmethod
    def check(cls, config: Config) -> None:
        settings = config.block(PurifierConfig)
        if config.size < LEAST_SIZE[SMALL]:
            raise UserError(f"size: {config.size} is too small; use {LEAST_SIZE[SMALL]} or more")
        if not settings.recognizer:
            raise UserError(
                "purifier.recognizer: is empty; give the run or file of the recognizer to protect"
            )
        if settings.selection == "reinforce" and settings.clones < 2:
            raise UserError(
                "purifier.clones: 1 is not allowed with selection: reinforce, which compares them"
            )
        if config.training.strategy == "deepspeed":
            raise UserError("training.strategy: deepspeed is not supported for a purifier; use ddp or fsdp")

    @classmethod
    def identity(cls, config: Config) -> dict[str, Any]:
        settings = config.block(PurifierConfig)
        return {"purifier": [settings.components, settings.colour]}

    @classmethod
    def uses_recognizer(cls, config: Config) -> str:
        return config.block(PurifierConfig).recognizer

    def read_weights(self, source: str) -> Mapping[str, Mapping[str, Tensor]]:
        raise UserError(f"training.start_from: {source} is not the run of a purifier; give one")

    def begin(self, start: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Another purifier gives its basis, too."""
        made = Purifier(self._selector, self._space)
        load_into(made, start["purifier"], source)
        self.frozen[COPY].load_state_dict(self._selector.state_dict())

    def learn(self, every: AllFaces) -> None:
        if not self._space.variance.any():
            self._space.fit(every.count, every.total, self.config.training.seed)

    def phases(self) -> list[Phase]:
        return [Phase("purifier", ("purifier",), self._loss)]

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        x = self._space.seen(faces(self.config, batch))
        attacked = self._attacked(x, batch.positions, self.frozen[RECOGNIZER](x))
        with evaluating(self._selector):
            purifier = Purifier(self._selector, self._space)
            noise = purifier.noise(self.config.training.seed, batch.positions)
            purified, cleaned = purifier(x, noise), purifier(attacked, noise)
        return {"face": x, "purified": purified, "attacked": attacked, "attacked_purified": cleaned}

    def rules(self) -> list[Rule]:
        nothing = "the purifier keeps almost nothing: {value:.4f} of the components"
        forgotten = "the memory has collapsed: {value:.1f} of its cells are in use"
        return [
            Rule("keeps_nothing", "kept", "log", nothing, below=1 / self.settings.components),
            Rule("memory", "cells", "log", forgotten, below=2),
        ]

    @property
    def _selector(self) -> Selector:
        selector = self.networks["purifier"]
        assert isinstance(selector, Selector)
        return selector

    @property
    def _space(self) -> Eigenfaces:
        space = self.frozen[EIGENFACES]
        assert isinstance(space, Eigenfaces)
        return space

    def _loss(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        self.meet()  # the copy is attacked in evaluation mode
        follow(self.frozen[COPY], self._selector, self.settings.decay)
        x = self._space.seen(faces(self.config, batch))
        with torch.no_grad():
            wanted = self.frozen[RECOGNIZER](x)
        both = torch.cat([x, self._attacked(x, batch.positions, wanted)])
        with batchnorm.parts(self._selector, len(x)):
            logits, features = self.networks["purifier"](both)
        cells = self._selector.memory.remember(*self.gather(features.detach()))
        noise = self._noise(batch.positions)
        with torch.no_grad():
            coordinates = self._space.coordinates(both)
        if self.settings.selection == "reinforce":
            loss, parts = self._reinforced(logits, noise, coordinates, x, wanted)
        else:
            masks = drawn(logits.sigmoid()[:, None], noise)
            parts = self._costs(masks, coordinates, x, wanted)
            loss = self._weighted(parts).mean()
        parts = parts.detach()
        clean, attacked = parts[2].chunk(2)
        return loss, {
            "loss": self._weighted(parts).mean(),
            "pixel": parts[0].mean(),
            "kept": parts[1].mean() / logits.shape[1],
            "distance": clean.mean(),
            "attacked_distance": attacked.mean(),
            "cells": cells,
        }

    def _reinforced(
        self, logits: Tensor, noise: Tensor, coordinates: Tensor, x: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A loss whose gradient is that of the mean cost, from the costs alone; and the parts of the costs.

        The mean over all C masks is the baseline, so the sum is divided by C − 1 to be unbiased.
        """
        with torch.no_grad():
            masks = drawn(logits.sigmoid()[:, None], noise)
            parts = self._costs(masks, coordinates, x, wanted)
            cost = self._weighted(parts)
            advantage = cost - cost.mean(1, keepdim=True)
        surprise = F.binary_cross_entropy_with_logits(
            logits[:, None].expand_as(masks), masks, reduction="none"
        ).sum(2)
        return -(advantage * surprise).sum(1).mean() / (self.settings.clones - 1), parts

    def _costs(self, masks: Tensor, coordinates: Tensor, x: Tensor, wanted: Tensor) -> Tensor:
        """Squared change of the pixels, number of kept components and distance of the embeddings, for each
        mask: [3,2B,C] of masks [2B,C,K]. The clean faces x [B,3,H,W] and their embeddings `wanted` [B,E] are
        the targets of both halves."""
        x, wanted = x.repeat(2, 1, 1, 1), wanted.repeat(2, 1)
        found = []
        for mask in masks.unbind(1):  # one after the other: all faces at once would need much memory
            made = self._space.faces(coordinates * mask)
            cosine = (self.frozen[RECOGNIZER](made) * wanted).sum(1)
            found.append(torch.stack([(made - x).square().mean((1, 2, 3)), mask.sum(1), 1 - cosine]))
        return torch.stack(found, 2)

    def _weighted(self, parts: Tensor) -> Tensor:
        settings = self.settings
        weights = (settings.pixel_weight, settings.kept_weight, settings.identity_weight)
        return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)

    def _noise(self, positions: Tensor) -> Tensor:
        """[2B,C,K] in [0,1), for the masks of clean and attacked faces."""
        clones, components = self.settings.clones, self.settings.components
        halves = [
            uniform(self.config.training.seed, positions, clones * components, STREAM + half)
            for half in range(2)
        ]
        return torch.cat(halves).view(-1, clones, components)

    def _attacked(self, x: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """Move faces x [B,3,H,W] so that what the moving average makes of them is embedded away from
        `wanted` [B,E]."""
        purifier = Purifier(self.frozen[COPY], self._space)  # type: ignore[arg-type]
        moved = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            cosine = (self.frozen[RECOGNIZER](purifier(moved)) * wanted).sum()
            (slope,) = torch.autograd.grad(cosine, moved)
        size = self.settings.epsilon * (positions >= self.settings.warmup_images).to(x.dtype)
        # a face without contrast has no gradient through whitening
        return (x - per_face(size) * slope.nan_to_num(0, 0, 0).sign()).clamp(0, 1).detach()


@torch.no_grad()
def follow(copied: nn.Module, network: nn.Module, decay: float) -> None:
    """Move a copy's weights and statistics towards those of a network."""
    live = network.state_dict()
    pairs = [(tensor, whole(live[name])) for name, tensor in copied.state_dict().items()]
    floats = [(old, new) for old, new in pairs if old.is_floating_point()]
    torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], 1 - decay)
    for old, new in pairs:
        if not old.is_floating_point():
            old.copy_(new)
