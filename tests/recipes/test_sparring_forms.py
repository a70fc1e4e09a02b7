"""Salient occlusion, its random control and the worst of several, where the answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import formulas
import pytest
import torch
import torch.nn.functional as F
from small import Batch, batch, config, recipe, step
from torch import Tensor, nn

from sparface.config import Config
from sparface.errors import UserError
from sparface.kernels.whiten import whiten
from sparface.models.recognizer import IdentityHead
from sparface.recipes.governor import HALVING, LEAST, Governor
from sparface.recipes.recognizer import ObjectiveConfig
from sparface.recipes.slots import Faces, divide, replaced
from sparface.recipes.sparring import SparringRecipe
from sparface.sparring import occlusion
from sparface.sparring.made import Source
from sparface.variation.occluders import WIDE, Occluders

PEOPLE, PHOTOS, SIDE = 4, 16, 16
CORNER = slice(0, SIDE // 2)


def arranged(images_per_identity: int = 4, **settings: Any) -> Config:
    base = config(**{"slots": "replace", "form": "occlusion", **settings})
    data = replace(base.data, variation="none", images_per_identity=images_per_identity)
    return replace(base, data=data)


class Corner(nn.Module):
    """A recognizer that looks at the colour of the upper left quarter only; grey says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, whitened: bool = False) -> Tensor:
        x = x if whitened else whiten(x)
        colour = x[..., CORNER, CORNER].mean((2, 3))
        colour = colour - colour.mean(1, keepdim=True)
        undecided = colour.new_full((len(colour), 1), 2.0)
        return F.normalize(torch.cat([colour, undecided], 1) + 0 * self.unused, dim=1)


def people(number: int) -> Batch:
    """Four people × 16 grey pictures with noise; the colour of the upper left quarter says who it is."""
    count = PEOPLE * PHOTOS
    noise = torch.Generator().manual_seed(number)
    images = torch.randint(90, 166, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=noise)
    labels = torch.arange(count) // PHOTOS
    colours = torch.tensor([[255, 30, 30], [30, 255, 30], [30, 30, 255], [200, 200, 20]], dtype=torch.uint8)
    images[..., CORNER, CORNER] = colours[labels][:, :, None, None]
    return Batch(images, labels, torch.arange(count) + count * number)


def against_the_corner(**settings: Any) -> SparringRecipe:
    """The recipe with a recognizer that names the four people by their corner."""
    losses = {
        "attack": "zero_sum",
        "triplet": 0.0,
        "arcface": 0.0,
        "scale": 8.0,
        "batchnorm": "shared",
    }
    made = recipe(arranged(PHOTOS, **losses, **settings))
    assert isinstance(made, SparringRecipe)
    corner, known = Corner(), people(0)
    head = IdentityHead(4, 6)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:PEOPLE] = corner(known.images).unflatten(0, (PEOPLE, PHOTOS)).mean(1)
    made.networks |= {"recognizer": corner, "head": head}
    return made


def outcome(made: SparringRecipe, mask: Tensor, face: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """How much of the upper left quarter is covered, how much of the rest, and the recognizer's loss."""
    corner = float(mask[..., CORNER, CORNER].mean())
    cosines = made.networks["head"](made.networks["recognizer"](face))
    return corner, (4 * float(mask.mean()) - corner) / 3, float(F.cross_entropy(8 * cosines, labels))


def test_the_occluder_learns_to_cover_what_identity_is_in() -> None:
    made = against_the_corner()
    optimizer = torch.optim.Adam(made.networks["generator"].parameters(), 1e-2)
    for number in range(60):
        step(made, people(number))
        optimizer.step()
    fresh = people(1000)
    source = Source(fresh.images / 255, fresh.positions)
    with torch.no_grad():
        learned, by_chance = made.form.learned(made.networks["generator"], source), made.form.random(source)
        found = [outcome(made, m.mask, m.face, fresh.labels) for m in (learned, by_chance)]  # type: ignore[arg-type]
        *_, uncovered = outcome(made, torch.zeros_like(source.faces), source.faces, fresh.labels)
    (corner, elsewhere, loss), (corner_by_chance, _, loss_by_chance) = found
    assert corner > 2 * corner_by_chance and corner > 3 * elsewhere
    assert loss - uncovered > 1.5 * (loss_by_chance - uncovered)


def source_of(faces: Batch, strength: float | None = None) -> Source:
    given = None if strength is None else torch.tensor(strength)
    return Source(faces.images / 255, faces.positions, given)


def test_a_cover_is_never_larger_than_its_bound_wherever_it_is_put() -> None:
    made = against_the_corner()
    generator, source = made.networks["generator"], source_of(people(3))
    most = WIDE.width[1] * WIDE.height[1]
    with torch.no_grad():
        generator.everywhere.copy_(torch.randn(8, 8))  # type: ignore[operator, union-attr]
        for one in (made.form.random(source), made.form.learned(generator, source)):
            assert one.mask is not None
            assert 0 < float(one.mask.mean((1, 2, 3)).max()) <= most
            outside = one.mask[:, 0] == 0
            assert torch.equal(one.face.movedim(1, -1)[outside], source.faces.movedim(1, -1)[outside])


def test_only_the_place_differs_between_learned_and_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control has the same sizes, tilts and textures, face by face."""
    seen: list[Occluders] = []
    made = against_the_corner()
    monkeypatch.setattr(occlusion, "Covered", lambda faces, occluders, *rest: seen.append(occluders))
    made.form.random(source_of(people(3)))
    made.form.learned(made.networks["generator"], source_of(people(3)))
    by_chance, learned = seen
    for name in ("size", "angle", "opacity", "texture"):
        assert torch.equal(getattr(by_chance, name), getattr(learned, name))
    assert not torch.equal(by_chance.centre, learned.centre)
    assert float(learned.centre.abs().max()) <= WIDE.reach + 1e-6


def test_without_a_preference_every_place_is_as_likely() -> None:
    made, count = against_the_corner(), 4096
    faces = Batch(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), torch.zeros(count), torch.arange(count))
    learned = made.form.learned(made.networks["generator"], source_of(faces))
    assert isinstance(learned, occlusion.Covered)
    counts = torch.bincount(learned.place, minlength=64)
    assert float((counts - 64).square().sum() / 64) < 104  # χ² with 63 degrees of freedom, p = 0.001


def test_a_warm_up_is_random_and_the_generator_learns_in_it() -> None:
    made = against_the_corner(warmup_images=8)
    faces = people(0)
    with torch.no_grad():
        made.networks["generator"].everywhere[0, 0] = 100  # type: ignore[index, operator]
    early = faces.positions < 8
    learned = made.form.learned(made.networks["generator"], source_of(faces), early)
    by_chance = made.form.random(source_of(faces))
    assert torch.equal(learned.face[early], by_chance.face[early])
    assert not torch.equal(learned.face[~early], by_chance.face[~early])
    gradients, _, _ = step(made, Batch(faces.images[:16], faces.labels[:16], faces.positions[:16]))
    assert gradients["generator.everywhere"].abs().sum() > 0


@pytest.mark.parametrize("form", ["occlusion", "perturbation"])
def test_strength_scales_the_change(form: str) -> None:
    made = against_the_corner(form=form)
    whole, quarter = (made.form.random(source_of(people(0), strength)) for strength in (None, 0.25))
    assert whole.mask is not None and quarter.mask is not None
    if form == "occlusion":  # a quarter of the area, but for parts beyond the edge of the face
        ratio = float(quarter.mask.mean() / whole.mask.mean())
        assert 0.25 <= ratio < 0.45
    else:
        ratio = float(quarter.metrics()["perturbation_mean"] / whole.metrics()["perturbation_mean"])
        assert ratio == pytest.approx(0.25)


def test_the_worst_of_several_is_the_worst_for_the_recognizer_itself() -> None:
    made = against_the_corner(choice="worst", candidates=5)
    faces = people(0)
    cast = made._cast(faces, None)
    source = Source(cast.source.images, cast.source.positions)
    losses, all_faces = [], []
    for number in range(5):
        face = made.form.random(source, number).face
        cosines = made.networks["head"](made.networks["recognizer"](face))
        losses.append(F.cross_entropy(8 * cosines, cast.source.labels, reduction="none"))
        all_faces.append(face)
    worst = torch.stack(losses).argmax(0)
    assert len(set(worst.tolist())) == 5
    expected = torch.stack([all_faces[k][i] for i, k in enumerate(worst.tolist())])
    torch.testing.assert_close(cast.made.face, expected)
    torch.testing.assert_close(cast.whitened, whiten(torch.cat([cast.real.images, expected])))


def test_choosing_the_worst_changes_no_statistics_and_trains_no_generator() -> None:
    made = recipe(arranged(2, choice="worst"))
    assert set(made.networks) == {"recognizer", "head"}
    before = {k: v.clone() for k, v in made.networks["recognizer"].state_dict().items()}
    made._cast(batch(), None)  # type: ignore[attr-defined]
    assert all(torch.equal(v, before[k]) for k, v in made.networks["recognizer"].state_dict().items())
    assert all(module.training for module in made.networks["recognizer"].modules())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("choice", ["learned", "random", "worst"])
@pytest.mark.parametrize("head", [True, False])
def test_faces_that_are_replaced_count_like_all_others(choice: str, head: bool) -> None:
    """The recognizer sees as many images as alone, and its loss is the plain one over all of them."""
    losses = {} if head else {"cross_entropy": 0.0, "arcface": 0.0}
    made = recipe(arranged(2, choice=choice, batchnorm="shared", **losses))
    seen: list[Tensor] = []
    made.networks["recognizer"].register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach()) if module.training else None
    )
    _, metrics, _ = step(made, batch())
    (embeddings,) = seen
    cast = made._cast(batch(), made.networks.get("generator"))  # type: ignore[attr-defined]
    labels = torch.cat([cast.real.labels, cast.source.labels])
    assert sorted(labels.tolist()) == batch().labels.tolist()
    weights: Any = made.networks["head"].weight.detach() if head else None
    objective = made.config.block(ObjectiveConfig)
    expected, _ = formulas.identity_loss(objective, embeddings, embeddings, labels.tolist(), weights)
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-9)
    real, sparring = embeddings.chunk(2)
    near = [float(spar @ real[i]) for i, spar in enumerate(sparring)]  # one real face of each person
    assert cast.real.labels.tolist() == cast.source.labels.tolist()
    assert float(metrics["distance"]) == pytest.approx(1 - sum(near) / 4)


@pytest.mark.parametrize(
    ("share", "group", "count"), [(0.5, 4, 2), (0.5, 3, 1), (0.67, 3, 2), (0.05, 4, 1), (1.0, 4, 3)]
)
def test_a_share_of_each_group_is_replaced(share: float, group: int, count: int) -> None:
    assert replaced(share, group) == count
    numbers = torch.arange(6 * group)
    faces = Faces(torch.rand(6 * group, 3, 2, 2), numbers // group, numbers)
    whole = divide(faces, group, count, seed=3)
    real, source = whole.real, whole.source
    assert torch.bincount(source.labels).tolist() == [count] * 6
    both = torch.cat([real.positions, source.positions])
    assert sorted(both.tolist()) == list(range(6 * group))
    for part in (real, source):
        assert torch.equal(part.images, faces.images[part.positions])
    later = divide(faces.take(numbers[2 * group :]), group, count, seed=3)
    assert torch.equal(later.source.positions, source.positions[2 * count :]), "by any process"
    drawn = {tuple(divide(faces, group, count, seed).source.positions.tolist()) for seed in range(5)}
    assert len(drawn) > 1


def test_settings_that_cannot_work() -> None:
    with pytest.raises(UserError, match=r"sparring\.slots: replace needs groups of two or more faces"):
        recipe(arranged(1))
    with pytest.raises(UserError, match=r"sparring.band_low: 0.9 is above sparring.band_high \(0.8\)"):
        recipe(arranged(4, band_low=0.9, band_high=0.8))


def test_the_governor_keeps_accuracy_in_its_band() -> None:
    governor = Governor(0.6, 0.8)
    for accuracy, factor in ((0.5, 0.5), (0.6, 1), (0.7, 1), (0.8, 1), (0.9, 2), (0.9, 1)):
        before = float(governor.strength)
        governor.observe(torch.tensor(accuracy), HALVING)
        assert float(governor.strength) == pytest.approx(min(1, before * factor))
    for _ in range(9):
        governor.observe(torch.tensor(0.0), HALVING)
    assert float(governor.strength) == LEAST


def test_a_governed_step_uses_the_strength_and_reports_it() -> None:
    made = against_the_corner(band_high=0.5)
    governor = made.frozen["governor"]
    assert isinstance(governor, Governor)
    covered = []
    for number, strength in enumerate((0.1, 0.9)):
        governor.strength.fill_(strength)
        _, metrics, _ = step(made, people(number))
        assert float(metrics["strength"]) == pytest.approx(strength)
        # most are recognized: stronger from here on, by the 64 images of this batch
        assert float(metrics["sparring_accuracy"]) > 0.5
        assert float(governor.strength) == pytest.approx(strength * 2 ** (64 / HALVING))
        covered.append(float(metrics["mask_mean"]))
    assert covered[1] > 3 * covered[0]
