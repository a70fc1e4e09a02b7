"""Sets of adversarial examples: every face of a set is attacked once, by the machinery of made sets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparface.attacks.attack import Attack
from sparface.attacks.goal import Goal, of_templates
from sparface.attacks.settings import AttackConfig
from sparface.attacks.suite import build_attack
from sparface.attacks.trained import TrainedAttack
from sparface.errors import UserError
from sparface.evaluation.recognizers import Opened, open_recognizer, weights_digest
from sparface.evaluation.verification import Validator
from sparface.generate.settings import GenerateConfig, StorageConfig
from sparface.generate.variants import Block, Drawing, Judge, Made, Maker, Variant, pixels
from sparface.randomness import uniform
from sparface.runs.trained import open_generator, open_run
from sparface.shards.format import Face
from sparface.shards.set import ShardSet

PAIRS = 1000
"""Pairs of faces of the set on which the threshold of "the same person" is set."""
TEMPLATES = 4
"""Most other photos of a person that a face is compared with."""
TARGET_STREAM = 23
"""Stream of `sparface.randomness`."""
SLACK = 1e-3
"""Rounding error of a change, in grey levels, that does not make it smaller when it is stored."""


class AttackMaker(Maker):
    """Attacks a recognizer on the faces of a set.

    A face is compared with up to `TEMPLATES` other photos of its person (with itself if there are none), or
    of the person whom it shall match. The attack changes faces by whole grey levels, rounded towards the
    source, so that what is stored is within its bound.
    """

    verb: ClassVar[str] = "attack"

    def __init__(
        self,
        attack: Attack,
        storage: StorageConfig,
        sources: ShardSet,
        recognizer: Opened,
        device: torch.device,
    ) -> None:
        epsilon = attack.settings.used().get("epsilon", 1.0)
        settings = GenerateConfig(
            factor=1,
            strength_low=epsilon,
            strength_high=epsilon,
            encoding=storage.encoding,
            shard_samples=storage.shard_samples,
            batch_size=storage.batch_size,
            seed=attack.settings.seed,
        )
        super().__init__(settings.resolved(epsilon), sources, device)
        if storage.targeted and len(sources.identities) < 2:
            raise UserError(f"--targeted: {sources.folder} has only one identity; use a set with two or more")
        self.attack, self.storage = attack, storage
        self.recognizer = recognizer.network.requires_grad_(False)
        distance = Validator(sources, PAIRS)(self.recognizer)["threshold"]
        if not math.isfinite(distance):
            raise UserError(f"{recognizer.name}: its embeddings are not finite; use another recognizer")
        self.threshold = 1 - distance**2 / 2
        self._order = torch.argsort(self.labels, stable=True)
        self._first = torch.searchsorted(self.labels[self._order], torch.arange(len(sources.identities) + 1))
        self.provenance = {
            "maker": f"{attack.settings.attack} on {recognizer.digest}",
            "generator": weights_digest(attack.generator) if isinstance(attack, TrainedAttack) else None,
        }

    def described(self) -> dict[str, Any]:
        return self.attack.settings.used() | dataclasses.asdict(self.storage)

    @torch.no_grad()
    def block(self, places: Sequence[int], faces: list[Face], judge: Judge | None) -> Block:
        """The templates [S,G,E] of each face are the block's `codes`."""
        found = super().block(places, faces, judge)
        wanted = [self._compared(place) for place in places]
        needed = sorted({place for others in wanted for place in others})
        images = self.floats(pixels([face for _, face in self.sources.faces_at(needed)]))
        embeddings = self.in_batches(self.recognizer, images)
        rows = torch.from_numpy(np.searchsorted(needed, wanted)).to(self.device)
        return dataclasses.replace(found, codes=embeddings[rows])

    def change_faces(self, drawing: Drawing) -> tuple[Tensor, Tensor, list[str | None]]:
        assert drawing.block.codes is not None
        goal = self._goal(drawing.block.codes[drawing.rows])
        found = self.attack(goal, drawing.x, drawing.positions).faces
        levels = (found - drawing.x) * 255
        change = torch.where(levels < 0, (levels - SLACK).ceil(), (levels + SLACK).floor()) / 255
        targets = [self._target(drawing.block.places[variant.row]) for variant in drawing.variants]
        names = [None if target is None else self.sources.identities[target] for target in targets]
        return drawing.x + change, torch.ones_like(drawing.strength), names

    def figures(self, block: Block, drawn: Sequence[Variant], made: Made) -> dict[str, Tensor]:
        """Whether each face reached its goal [B], before and after the attack."""
        assert block.codes is not None
        rows = torch.tensor([variant.row for variant in drawn], device=self.device)
        goal, each = self._goal(block.codes[rows]), torch.arange(len(rows), device=self.device)
        after = goal.judge(self.floats(made.images), each) < 0
        return {"reached_before": goal.judge(block.x[rows], each) < 0, "reached": after}

    def _goal(self, templates: Tensor) -> Goal:
        thresholds = templates.new_full((len(templates),), self.threshold)
        labels = torch.zeros(len(templates), dtype=torch.int64, device=self.device)
        scores = of_templates(self.recognizer, templates, thresholds)
        return Goal(scores, labels, self.storage.targeted)

    def _compared(self, place: int) -> list[int]:
        """The `TEMPLATES` faces that a face is compared with; they repeat if there are fewer."""
        target = self._target(place)
        label = self.label(place) if target is None else target
        photos = self._order[self._first[label] : self._first[label + 1]].tolist()
        others = [photo for photo in photos if photo != place] or [place]
        after = next((i for i, photo in enumerate(others) if photo > place), 0) if target is None else 0
        return [others[(after + i) % len(others)] for i in range(TEMPLATES)]

    def _target(self, place: int) -> int | None:
        """The label of the person whom a face shall match."""
        if not self.storage.targeted:
            return None
        people = len(self.sources.identities)
        draw = uniform(self.settings.seed, torch.tensor([place]), 1, TARGET_STREAM)
        return (self.label(place) + 1 + int(float(draw) * (people - 1))) % people


def open_attack(
    checkpoint: Path,
    shards: Path,
    settings: AttackConfig,
    storage: StorageConfig,
    *,
    generator: Path | None = None,
    device: torch.device,
) -> tuple[AttackMaker, Opened]:
    """Open an attack on the faces of a set, and the attacked recognizer (see `open_recognizer`).

    `generator` is the run whose generator makes the changes, for the attack `trained`. Raises `UserError` if
    something cannot be opened or used.
    """
    settings = settings.resolved()
    sources = ShardSet.open(shards)
    if (generator is not None) != (settings.attack == "trained"):
        raise UserError("--generator: goes with --attack trained; give both or neither")
    made = None if generator is None else open_generator(open_run(generator), device)
    attack = build_attack(settings, made)
    recognizer = open_recognizer(checkpoint, device, gradients=attack.needs_gradient)
    recognizer.require_size(sources)
    return AttackMaker(attack, storage, sources, recognizer, device), recognizer
