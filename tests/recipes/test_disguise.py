"""The disguise: within its bounds, and learned against the recognizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import Batch, batch, config, difference, recipe, step
from torch import Tensor, nn

from sparface.config import Config
from sparface.kernels.whiten import whiten
from sparface.models.recognizer import IdentityHead
from sparface.recipes.sparring import SparringRecipe
from sparface.sparring.disguise import Disguised
from sparface.sparring.made import Source
from sparface.variation.strong import BOUNDS


def disguising(**settings: Any) -> Config:
    base = config(**{"slots": "replace", "form": "disguise", **settings})
    return replace(base, data=replace(base.data, variation="none"))


class Side(nn.Module):
    """A recognizer that compares the brightness of the left and the right half."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, whitened: bool = False) -> Tensor:
        left, right = x.chunk(2, 3)
        halves = torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1)
        return F.normalize(torch.softmax(0.3 * halves, 1) + 0 * self.unused, dim=1)


def halves(number: int) -> Batch:
    """Two people, of whom one is brighter on the left, the other on the right."""
    noise = torch.Generator().manual_seed(number)
    images = torch.randint(70, 150, (16, 3, 16, 16), dtype=torch.uint8, generator=noise)
    labels = torch.arange(16) // 2 % 2
    images[labels == 0, ..., :8] += 60
    images[labels == 1, ..., 8:] += 60
    return Batch(images, labels, torch.arange(16) + 16 * number)


def test_the_disguise_learns_what_the_recognizer_looks_at() -> None:
    made = recipe(disguising(attack="zero_sum", triplet=0.0, arcface=0.0, scale=8.0, batchnorm="shared"))
    assert isinstance(made, SparringRecipe)
    head = IdentityHead(2, 6)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], *[[-1.0, -1.0]] * 4]))
    made.networks |= {"recognizer": Side(), "head": head}
    generator = made.networks["generator"]
    optimizer = torch.optim.Adam(generator.parameters(), 1e-2)
    for number in range(25):
        step(made, halves(number))
        optimizer.step()
    fresh = halves(1000)
    source = Source(fresh.images / 255, fresh.positions)
    with torch.no_grad():
        learned, by_chance = (
            F.cross_entropy(8 * head(Side()(whiten(one.face))), fresh.labels)
            for one in (made.form.learned(generator, source), made.form.random(source))
        )
    assert learned > 1.3 * by_chance


def test_every_parameter_stays_in_its_bounds() -> None:
    made = recipe(disguising())
    assert isinstance(made, SparringRecipe)
    faces = batch()
    generator = made.networks["generator"]
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(100)
        for strength in (None, 0.25):
            source = Source(
                faces.images / 255, faces.positions, None if strength is None else torch.tensor(strength)
            )
            for one in (made.form.learned(generator, source), made.form.random(source)):
                assert isinstance(one, Disguised)
                assert one.values.shape == (8, sum(torch.Size(shape).numel() for shape, _ in BOUNDS.values()))
                assert float(one.values.abs().max()) <= (strength or 1)
                assert one.face.min() >= 0 and one.face.max() <= 1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("slots", ["replace", "add"])
def test_shared_and_alternating_are_the_same_step(slots: str) -> None:
    steps = [
        step(recipe(disguising(update=update, slots=slots)), batch()) for update in ("shared", "alternating")
    ]
    for shared, alternating in zip(*steps, strict=True):
        assert difference(shared, alternating) < 1e-9
    changes = [g for name, g in steps[0][0].items() if name.startswith("generator.parameters_of")]
    assert all(g.abs().sum() > 0 for g in changes)
