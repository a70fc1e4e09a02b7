"""The recipe `noise_gan`: what each network learns, against the formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import IDENTITIES, Batch, batch, config, recipe
from torch import Tensor

from sparface.config import StatePolicy
from sparface.models.batchnorm import frozen_statistics
from sparface.models.noise_gan import Discriminator, NoiseGanConfig, NoiseGenerator, steps
from sparface.randomness import normal
from sparface.recipes.base import Phase, Recipe
from sparface.recipes.noise_gan import (
    GENERATOR_STREAM,
    MADE_STREAM,
    NOISE_STREAMS,
    REAL_STREAM,
    NoiseGanRecipe,
)
from sparface.recipes.noise_gan_watch import NoiseGanWatchConfig, diversity, noise_gan_rules
from sparface.training.watch import judge
from sparface.variation.differentiable import hide

SEED = 3


def made(**given: Any) -> NoiseGanRecipe:
    settings = config("noise_gan", **given)
    settings.data.variation = "none"
    found = recipe(settings)
    assert isinstance(found, NoiseGanRecipe)
    return found


def phase(found: Recipe, name: str) -> Phase:
    (one,) = [each for each in found.phases() if each.name == name]
    for network, module in found.networks.items():
        module.requires_grad_(network in one.updates)
    return one


def judged(found: NoiseGanRecipe, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of being real, and over people, with the spectral norms as they are."""
    discriminator = found.networks["discriminator"]
    with frozen_statistics(discriminator):
        real, names = discriminator(x, realness=True)
    return real, names


def fakes(found: NoiseGanRecipe, use: str) -> Tensor:
    faces, generator = batch(), found.networks["generator"]
    noise = normal(SEED, faces.positions, (6,), NOISE_STREAMS[use])
    with frozen_statistics(generator):
        result: Tensor = generator(noise, faces.labels)
    return result


@pytest.mark.parametrize("loss", ["non_saturating", "minimax"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("augmentation", [True, False])
def test_the_losses_are_the_formulas(loss: str, weight: float, augmentation: bool) -> None:
    found = made(loss=loss, identity_weight=weight, augmentation=augmentation, spectral_norm=False)
    faces = batch()

    def seen(x: Tensor, stream: int) -> Tensor:
        return hide(x, SEED, faces.positions, stream) if augmentation else x

    real, names = judged(found, seen(faces.images / 255, REAL_STREAM))
    fake, _ = judged(found, seen(fakes(found, "discriminator"), MADE_STREAM))
    probability, of_fake = real.sigmoid(), fake.sigmoid()
    expected = -(probability.log().mean() + (1 - of_fake).log().mean())
    expected = expected + weight * F.cross_entropy(names, faces.labels)
    assert phase(found, "discriminator").loss(faces)[0].item() == pytest.approx(expected.item(), rel=1e-5)

    fake, names = judged(found, seen(fakes(found, "generator"), GENERATOR_STREAM))
    of_fake = fake.sigmoid()
    expected = ((1 - of_fake) if loss == "minimax" else 1 / of_fake).log().mean()
    expected = expected + weight * F.cross_entropy(names, faces.labels)
    assert phase(found, "generator").loss(faces)[0].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("r1", "every"), [(2.0, 1), (0.5, 4)])
def test_the_penalty_is_the_squared_slope_at_real_faces(r1: float, every: int) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        found, faces = made(r1=r1, r1_every=every, augmentation=False), batch()
        judged(found, faces.images / 255)
        own = phase(found, "r1")
        assert own.every == every and own.updates == ("discriminator",)
        loss, metrics = own.loss(faces)
        x, step, generator = faces.images / 255, 1e-5, torch.Generator().manual_seed(0)
        directions = torch.randn((3, *x.shape), generator=generator)
        slopes = torch.autograd.functional.jacobian(lambda y: judged(found, y)[0].sum(), x)
        for direction in directions:  # the slope is what finite differences see
            ahead, behind = (judged(found, x + sign * step * direction)[0] for sign in (1, -1))
            expected, seen = (slopes * direction).sum((1, 2, 3)), (ahead - behind).detach() / (2 * step)
            assert torch.allclose(seen, expected, rtol=1e-4)
        squared = slopes.square().sum((1, 2, 3)).mean().item()
        assert metrics["r1"].item() == pytest.approx(squared)
        assert loss.item() == pytest.approx(every * r1 / 2 * squared)
        loss.backward()
        parameters = dict(found.networks["discriminator"].named_parameters())
        assert all(p.grad is not None for p in parameters.values()), "what DDP and the optimizer expect"
        assert parameters["bounded.0.parametrizations.weight.original"].grad.abs().max() > 0
    finally:
        torch.set_default_dtype(torch.float32)
    assert [one.name for one in made(r1=0.0).phases()] == ["discriminator", "generator"]


def test_who_is_shown_depends_on_the_label_and_the_face_on_the_noise() -> None:
    found, faces = made(), batch()
    generator = found.networks["generator"].eval()
    noise = normal(SEED, faces.positions, (6,), 0)
    one, other = generator(noise, faces.labels), generator(noise, faces.labels + 1)
    assert one.shape == (8, 3, 32, 32) and one.min() >= 0 and one.max() <= 1
    assert (one - other).abs().amax((1, 2, 3)).min() > 0
    assert (one[0] - one[1]).abs().max() > 0, "two faces of one person"
    nobody = made(conditional=False).networks["generator"].eval()
    assert torch.equal(nobody(noise, faces.labels), nobody(noise, faces.labels + 1))
    assert "made_accuracy" not in phase(made(conditional=False), "generator").loss(faces)[1]


def test_noise_and_what_hides_faces_are_drawn_by_position() -> None:
    """Each use has its own, and a face's do not depend on the rest of the batch."""
    whole = batch()
    of_uses = [fakes(made(), use) for use in ("discriminator", "generator")]
    assert (of_uses[0] - of_uses[1]).abs().max() > 0
    x = whole.images / 255
    hidden = hide(x, SEED, whole.positions, REAL_STREAM)
    assert torch.allclose(hide(x[4:], SEED, whole.positions[4:], REAL_STREAM), hidden[4:], atol=1e-6)
    assert (hidden - hide(x, SEED, whole.positions, MADE_STREAM)).abs().mean() > 0.01
    assert hidden.min() >= 0 and hidden.max() <= 1


def test_the_generators_gradient_passes_what_hides_its_faces() -> None:
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x[0] = 0  # black and white faces, too
    x[1] = 1
    x.requires_grad_()
    hide(x, SEED, torch.arange(4), 0).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad[2:].abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("size", [8, 30, 32, 64, 75, 112, 128])
def test_any_size(size: int) -> None:
    doublings, start = steps(size)
    assert 4 <= start <= 8 and size <= start * 2**doublings < size + 2**doublings
    gan = NoiseGanConfig(width=2, latent=3, embedding=2)
    x = NoiseGenerator(gan, size, 5)(torch.randn(2, 3), torch.tensor([0, 4]))
    assert x.shape == (2, 3, size, size)
    real, names = Discriminator(gan, size, 5)(x, realness=True)
    assert real.shape == (2,) and names.shape == (2, 5)


def test_sizes_of_the_networks() -> None:
    state = made(width=6, latent=9, embedding=7).networks["generator"].state_dict()
    assert state["identities.weight"].shape == (IDENTITIES, 7)
    assert state["layers.0.weight"].shape == (16, 24, 4, 4), "noise and identity → 4 × 6 channels"
    grown = NoiseGenerator(NoiseGanConfig(width=6, latent=9, embedding=7), 32, 1)
    grown.load_state_dict(state)
    assert grown(torch.randn(1, 9), torch.tensor([IDENTITIES - 1])).shape == (1, 3, 32, 32)


def test_spectral_normalisation_bounds_the_slope() -> None:
    for bounded in (True, False):
        discriminator = made(spectral_norm=bounded).networks["discriminator"]
        with torch.no_grad():
            for name, parameter in discriminator.named_parameters():
                if "realness" in name and parameter.dim() > 1:
                    parameter.mul_(100)
            for _ in range(30):
                discriminator(torch.rand(2, 3, 32, 32))
            largest = torch.linalg.matrix_norm(discriminator.eval().realness.weight, 2).item()
        assert (abs(largest - 1) < 0.01) if bounded else largest > 10


def test_the_discriminators_own_rate() -> None:
    found = made(discriminator_learning_rate=3e-3)
    assert [found.learning_rate(name) for name in ("generator", "discriminator")] == [2e-4, 3e-3]


def test_diversity_is_a_ratio_of_standard_deviations() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(40, 1, 3, generator=generator).expand(40, 2, 3) + 0.1 * torch.randn(
        40, 2, 3, generator=generator
    )
    centre = real.mean(1, keepdim=True)
    alike = centre + 0.01 * (real - centre)  # people differ as before, photos of one hardly
    found = diversity(real.reshape(80, 3), alike.reshape(80, 3), 2)
    assert found["diversity"].item() == pytest.approx(1, abs=0.02)
    assert found["variety"].item() == pytest.approx(0.01, rel=1e-4)
    alone = diversity(real[:, 0], 0.3 * real[:, 0] + 5, 1)
    assert alone.keys() == {"diversity"} and alone["diversity"].item() == pytest.approx(0.3, rel=1e-4)


def test_variety_is_within_a_person_wherever_its_faces_are_in_the_batch() -> None:
    """BatchNorm's groups interleave people; a batch of each of whom has two faces, in two orders."""
    found, order = [], torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    for rows in (torch.arange(8), order):
        faces = batch()
        given = Batch(faces.images[rows], faces.labels[rows], faces.positions[rows])
        _, metrics = phase(made(conditional=True), "discriminator").loss(given)
        found.append(metrics["variety"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_levels_move_by_half_in_a_half_life() -> None:
    found = made(half_life=8)
    phase(found, "discriminator").loss(batch())  # a batch of 8 images
    _, metrics = phase(found, "discriminator").loss(batch())
    levels = found.frozen["levels"].state_dict()
    assert metrics["right_level"].item() == levels["right"].item()
    first = made(half_life=8)
    _, once = phase(first, "discriminator").loss(batch())
    assert once["diversity_level"].item() == pytest.approx((1 + once["diversity"].item()) / 2, rel=1e-5)
    right = (once["real_right"] + once["made_right"]).item() / 2
    assert once["right_level"].item() == pytest.approx((0.5 + right) / 2)


BOUNDS = [
    ("right_high", 0.75, "right_level", 0.8, "dead_discriminator", "dead"),
    ("diversity_low", 0.5, "diversity_level", 0.4, "collapse", "collapse"),
    ("variety_low", 0.5, "variety_level", 0.4, "collapse_per_person", "collapse"),
]


@pytest.mark.parametrize(("name", "bound", "metric", "beyond", "kind", "policy"), BOUNDS)
@pytest.mark.parametrize("action", ["log", "rollback", "stop"])
def test_a_level_beyond_its_bound(
    name: str, bound: float, metric: str, beyond: float, kind: str, policy: str, action: StatePolicy
) -> None:
    rules = noise_gan_rules(NoiseGanWatchConfig(**{name: bound, policy: action}))  # type: ignore[arg-type]
    (found,) = [anomaly for rule in rules if (anomaly := judge(rule, {metric: beyond}))]
    assert (found.kind, found.policy) == (kind, action) and f"{bound:g}" in found.message
    assert not any(judge(rule, {metric: bound}) for rule in rules)
    assert not any(judge(rule, {metric: math.nan}) for rule in rules)


def test_the_preview_is_of_the_same_noise_every_time() -> None:
    found = made()
    before = {name: value.clone() for name, value in found.networks["generator"].state_dict().items()}
    first, again = found.preview(batch()), found.preview(batch())
    assert first.keys() == {"face", "made", "hidden"} == NoiseGanRecipe.pictures.keys()
    assert torch.equal(first["made"], again["made"]) and first["made"].shape == (8, 3, 32, 32)
    after = found.networks["generator"].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
