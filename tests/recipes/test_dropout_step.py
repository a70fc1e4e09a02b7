"""Dropout in a step: the masks are those of the faces' positions, in every form of a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from small import Batch, batch, config, difference, recipe, step
from torch import Tensor

from sparface.models.dropout import STREAM
from sparface.randomness import uniform
from sparface.recipes import Recipe

pytestmark = pytest.mark.usefixtures("float64")
P, SEED = 0.3, 3


def dropped_by_hand(made: Recipe, faces: Batch) -> None:
    """Multiply what the embedding sees."""
    embedding: Any = made.networks["recognizer"].backbone.embedding  # type: ignore[union-attr]
    kept = uniform(SEED, faces.positions, embedding.in_features, STREAM) >= P

    def multiply(_: Any, given: tuple[Tensor]) -> Tensor:
        copies = len(given[0]) // len(kept)
        return given[0] * kept.repeat(copies, 1) / (1 - P)

    embedding.register_forward_pre_hook(multiply)


@pytest.mark.parametrize("kind", ["recognizer", "sparring"])
def test_a_step_drops_features_by_position(kind: str) -> None:
    """A face and its sparring face drop the same features."""
    faces, settings = batch(), config(kind, dropout=P)
    plain = replace(settings, blocks=dict(settings.blocks))
    plain.blocks["recognizer"] = replace(plain.blocks["recognizer"], dropout=0.0)
    by_hand = recipe(plain)
    without = step(recipe(plain), faces)[0]
    dropped_by_hand(by_hand, faces)
    expected, gradients = step(by_hand, faces)[0], step(recipe(settings), faces)[0]
    assert difference(expected, gradients) < 1e-9
    assert difference(without, gradients) > 0.01


def test_shared_and_alternating_drop_the_same() -> None:
    settings = [config(dropout=P, update=update, attack="targeted") for update in ("shared", "alternating")]
    assert difference(*(step(recipe(each), batch())[0] for each in settings)) < 1e-9
