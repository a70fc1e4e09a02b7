"""How much harder sparring faces are than the real faces that they replace some of."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small import IDENTITIES, config
from torch import Tensor

from sparface.config import Config
from sparface.kernels.triplet import Others
from sparface.recipes import build_recipe
from sparface.recipes.sparring_losses import success
from sparface.sparring.terms import Embedded
from sparface.training.watch import Watch

LABELS, MADE = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 1])


def embedded(real: Tensor, sparring: Tensor) -> Embedded:
    """Three real faces of two people, and three sparring faces; one process."""
    own = MADE[:, None] == LABELS
    everyone = Others(real, LABELS), Others(sparring, MADE)
    return Embedded(real, sparring, LABELS, MADE, *everyone, own, torch.zeros_like(own), None, None)


def test_the_excess_is_what_sparring_adds_to_the_distance_between_photos_of_a_person() -> None:
    rng = torch.Generator().manual_seed(0)
    real, sparring = (F.normalize(torch.randn(count, 5, generator=rng), dim=1) for count in (6, 3))
    found = success(embedded(real, sparring), added=False, paired=True)
    usual = [1 - real[i] @ real[j] for i, j in itertools.permutations(range(6), 2) if LABELS[i] == LABELS[j]]
    made = [1 - sparring[i] @ real[j] for i in range(3) for j in range(6) if MADE[i] == LABELS[j]]
    assert float(found["distance"]) == pytest.approx(float(torch.stack(made).mean()), abs=1e-6)
    excess = float(torch.stack(made).mean() - torch.stack(usual).mean())
    assert float(found["excess"]) == pytest.approx(excess, abs=1e-6)


def grouped(images_per_identity: int) -> Config:
    base = config(slots="replace")
    return replace(base, data=replace(base.data, images_per_identity=images_per_identity))


def test_faces_that_change_nothing_are_reported() -> None:
    real = F.normalize(torch.randn(2, 5, generator=torch.Generator().manual_seed(1)), dim=1)[LABELS]
    made = build_recipe(grouped(3), IDENTITIES)
    metrics = success(embedded(real, real[[0, 3, 3]]), added=False, paired=True)
    means = {name: float(value) for name, value in metrics.items()} | {"embedding_cosine": 0.2}
    (anomaly,) = Watch(made.config.watch, made.rules()).inspect(1, means)
    assert anomaly.kind == "dead_generator" and anomaly.message.startswith("dead generator: excess ")
    means["excess"] = 0.1
    assert Watch(made.config.watch, made.rules()).inspect(1, means) == []


def test_a_single_real_face_of_a_person_says_nothing_about_it() -> None:
    kinds = [rule.kind for rule in build_recipe(grouped(2), IDENTITIES).rules()]
    assert "dead_generator" not in kinds and "generator_wins" in kinds
