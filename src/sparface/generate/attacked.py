"""Sets of adversarial examples: every face of a set is attacked once, by the machinery of made sets."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparface.attacks.attack import Attack
from sparface.attacks.goal import Goal, of_classifier, of_templates
from sparface.attacks.settings import AttackConfig
from sparface.attacks.suite import build_attack
from sparface.attacks.trained import TrainedAttack
from sparface.errors import UserError
from sparface.evaluation.classification import class_of, is_classifier, open_classifier, require_known
from sparface.evaluation.recognizers import Opened, open_recognizer
from sparface.evaluation.verification import Validator
from sparface.generate.settings import GenerateConfig, StorageConfig
from sparface.generate.variants import Block, Drawing, Judge, Made, Maker, Variant, pixels
from sparface.models.weights import weights_digest
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
    """Attacks a network on the faces of a set.

    Changes are whole grey levels, rounded towards the source, so that what is stored is within the attack's
    bound.
    """

    verb: ClassVar[str] = "attack"

    def __init__(
        self, attack: Attack, storage: StorageConfig, sources: ShardSet, opened: Opened, device: torch.device
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
        self.attack, self.storage = attack, storage
        self.network = opened.network.requires_grad_(False)
        self.provenance = {
            "maker": f"{attack.settings.attack} on {opened.digest}",
            "generator": (
                weights_digest(attack.generator.state_dict()) if isinstance(attack, TrainedAttack) else None
            ),
        }

    def described(self) -> dict[str, Any]:
        return self.attack.settings.used() | dataclasses.asdict(self.storage)

    @abstractmethod
    def goal(self, block: Block, rows: Tensor) -> Goal:
        """What to achieve with some faces of a block, by index."""

    @abstractmethod
    def target(self, block: Block, row: int) -> str | None:
        """The name of what a face shall be taken for, if the attack is targeted."""

    def change_faces(self, drawing: Drawing) -> tuple[Tensor, Tensor, list[str | None]]:
        goal = self.goal(drawing.block, drawing.rows)
        found = self.attack(goal, drawing.x, drawing.positions).faces
        levels = (found - drawing.x) * 255
        change = torch.where(levels < 0, (levels - SLACK).ceil(), (levels + SLACK).floor()) / 255
        targets = [self.target(drawing.block, variant.row) for variant in drawing.variants]
        return drawing.x + change, torch.ones_like(drawing.strength), targets

    def figures(self, block: Block, drawn: Sequence[Variant], made: Made) -> dict[str, Tensor]:
        """Whether each face reached its goal [B], before and after the attack."""
        rows = torch.tensor([variant.row for variant in drawn], device=self.device)
        goal, each = self.goal(block, rows), torch.arange(len(rows), device=self.device)
        after = goal.judge(self.floats(made.images), each) < 0
        return {"reached_before": goal.judge(block.x[rows], each) < 0, "reached": after}

    def other(self, place: int, own: int, count: int) -> int:
        """Draw one of `count` numbers, but not a face's own."""
        draw = uniform(self.settings.seed, torch.tensor([place]), 1, TARGET_STREAM)
        return (own + 1 + int(float(draw) * (count - 1))) % count


class RecognizerAttack(AttackMaker):
    """A face is compared with up to `TEMPLATES` other photos of its person (itself if there are none), or of
    the person whom it shall match."""

    def __init__(
        self, attack: Attack, storage: StorageConfig, sources: ShardSet, opened: Opened, device: torch.device
    ) -> None:
        super().__init__(attack, storage, sources, opened, device)
        if storage.targeted and len(sources.identities) < 2:
            raise UserError(f"--targeted: {sources.folder} has only one identity; use a set with two or more")
        distance = Validator(sources, PAIRS)(self.network)["threshold"]
        if not math.isfinite(distance):
            raise UserError(f"{opened.name}: its embeddings are not finite; use another recognizer")
        self.threshold = 1 - distance**2 / 2
        self._order = torch.argsort(self.labels, stable=True)
        self._first = torch.searchsorted(self.labels[self._order], torch.arange(len(sources.identities) + 1))

    @torch.no_grad()
    def block(self, places: Sequence[int], faces: list[Face], judge: Judge | None) -> Block:
        """The templates [S,G,E] of each face are the block's `codes`."""
        found = super().block(places, faces, judge)
        wanted = [self._compared(place) for place in places]
        needed = sorted({place for others in wanted for place in others})
        images = self.floats(pixels([face for _, face in self.sources.faces_at(needed)]))
        embeddings = self.in_batches(self.network, images)
        rows = torch.from_numpy(np.searchsorted(needed, wanted)).to(self.device)
        return dataclasses.replace(found, codes=embeddings[rows])

    def goal(self, block: Block, rows: Tensor) -> Goal:
        assert block.codes is not None
        templates = block.codes[rows]
        thresholds = templates.new_full((len(templates),), self.threshold)
        labels = torch.zeros(len(templates), dtype=torch.int64, device=self.device)
        return Goal(of_templates(self.network, templates, thresholds), labels, self.storage.targeted)

    def target(self, block: Block, row: int) -> str | None:
        label = self._target(block.places[row])
        return None if label is None else self.sources.identities[label]

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
        return self.other(place, self.label(place), len(self.sources.identities))


class ClassifierAttack(AttackMaker):
    """A face shall be taken for another class than its own, or for one that is drawn."""

    def __init__(
        self,
        attack: Attack,
        storage: StorageConfig,
        sources: ShardSet,
        opened: Opened,
        classes: Sequence[str],
        device: torch.device,
    ) -> None:
        super().__init__(attack, storage, sources, opened, device)
        assert opened.trained is not None
        self.column, self.classes = opened.trained.recipe.label, list(classes)
        require_known(sources, self.column, classes)

    def goal(self, block: Block, rows: Tensor) -> Goal:
        wanted = [
            self._target(block, row) if self.storage.targeted else self._own(block, row)
            for row in rows.tolist()
        ]
        labels = torch.tensor(wanted, device=self.device)
        return Goal(of_classifier(self.network), labels, self.storage.targeted)

    def target(self, block: Block, row: int) -> str | None:
        return self.classes[self._target(block, row)] if self.storage.targeted else None

    def _own(self, block: Block, row: int) -> int:
        return self.classes.index(class_of(block.faces[row], self.column, self.classes, self.sources))

    def _target(self, block: Block, row: int) -> int:
        return self.other(block.places[row], self._own(block, row), len(self.classes))


def open_attack(
    checkpoint: Path,
    shards: Path,
    settings: AttackConfig,
    storage: StorageConfig,
    *,
    generator: Path | None = None,
    device: torch.device,
) -> tuple[AttackMaker, Opened | None]:
    """Open an attack on the faces of a set, and the attacked recognizer (None if it is a classifier).

    `checkpoint` is the run of a classifier, or any recognizer (see `open_recognizer`). `generator` is the run
    whose generator makes the changes, for the attack `trained`. Raises `UserError` if something cannot be
    opened or used.
    """
    settings = settings.resolved()
    sources = ShardSet.open(shards)
    if (generator is not None) != (settings.attack == "trained"):
        raise UserError("--generator: goes with --attack trained; give both or neither")
    made = None if generator is None else open_generator(open_run(generator), device)
    attack = build_attack(settings, made)
    if is_classifier(checkpoint):
        opened, classes = open_classifier(checkpoint, device)
        opened.require_size(sources)
        return ClassifierAttack(attack, storage, sources, opened, classes, device), None
    opened = open_recognizer(checkpoint, device, gradients=attack.needs_gradient)
    opened.require_size(sources)
    return RecognizerAttack(attack, storage, sources, opened, device), opened
