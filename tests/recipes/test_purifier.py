"""A step of the purifier against plain formulas."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import Everyone, batch, config, recipe, step
from torch import Tensor

from sparface.config import Config
from sparface.errors import UserError
from sparface.models.purifier import Purifier, Selector
from sparface.recipes import Recipe, registry
from sparface.recipes.base import faces

pytestmark = pytest.mark.usefixtures("float64")


def settings(**given: Any) -> Config:
    return config("purifier", **given)


def halves(made: Recipe) -> tuple[Tensor, Tensor]:
    """The faces of the batch, and the same as they are attacked."""
    found: Any = made
    x = found._space.seen(faces(made.config, batch(made.config.size)))
    with torch.no_grad():
        wanted = made.frozen["recognizer"](x)
    return x, found._attacked(x, batch().positions, wanted)


def cost(made: Recipe, masks: Tensor, x: Tensor, target: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Of one face [1,3,H,W], with each of the masks [M,K]."""
    space: Any = made.frozen["eigenfaces"]
    coordinates = (space.flat(x)[0] - space.mean) @ space.basis.T
    made_faces = ((masks * coordinates) @ space.basis + space.mean).view(-1, *space.shape).clamp(0, 1)
    made_faces = made_faces.expand(-1, 3, -1, -1)
    recognizer = made.frozen["recognizer"]
    cosines = F.cosine_similarity(recognizer(made_faces), recognizer(target))
    pixel, kept, identity = weights
    change = F.mse_loss(made_faces, target.expand_as(made_faces), reduction="none").mean((1, 2, 3))
    return pixel * change + kept * masks.sum(1) + identity * (1 - cosines)


WEIGHTS = {"pixel_weight": 2.0, "kept_weight": 0.01, "identity_weight": 3.0}


def expected_gradient(made: Recipe) -> Tensor:
    """Of the mean cost with respect to the bias of the head, over all masks with their probabilities."""
    x, attacked = halves(made)
    selector: Any = made.networks["purifier"]
    bias = selector.head.bias
    logits, _ = selector.train()(torch.cat([x, attacked]))
    total = logits.new_zeros(())
    for i, row in enumerate(logits):
        face, target = torch.cat([x, attacked])[i : i + 1], x[i % len(x)][None]
        keep = row.sigmoid()
        masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(row))))
        probabilities = torch.where(masks > 0, keep, 1 - keep).prod(1)
        total = total + (probabilities * cost(made, masks, face, target, tuple(WEIGHTS.values()))).sum()
    (gradient,) = torch.autograd.grad(total / len(logits), bias)
    return gradient


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
def test_reinforce_has_the_gradient_of_the_mean_cost(colour: bool) -> None:
    """In the mean over many masks; five components have 32."""
    made = recipe(settings(selection="reinforce", clones=250, colour=colour, **WEIGHTS))
    selector: Any = made.networks["purifier"]
    torch.nn.init.zeros_(selector.head.bias)
    expected = expected_gradient(made)
    gradients, metrics, _ = step(made, batch())
    found = gradients["purifier.head.bias"]
    assert F.cosine_similarity(found, expected, dim=0) > 0.95
    assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=0.2)
    assert 0.3 < metrics["kept"] < 0.7


def test_straight_through_has_the_gradient_at_the_mask() -> None:
    made = recipe(settings(selection="straight_through", clones=1, **WEIGHTS))
    x, attacked = halves(made)
    selector: Any = made.networks["purifier"].train()
    both = torch.cat([x, attacked])
    keep = selector(both)[0].sigmoid()
    noise = made._noise(batch().positions)[:, 0]  # type: ignore[attr-defined]
    masks = (noise < keep).to(keep).requires_grad_()
    costs = [
        cost(made, mask[None], both[i : i + 1], x[i % len(x)][None], tuple(WEIGHTS.values()))[0]
        for i, mask in enumerate(masks)
    ]
    mean = torch.stack(costs).mean()
    (slope,) = torch.autograd.grad(mean, masks)
    (expected,) = torch.autograd.grad((keep * slope).sum(), selector.head.bias)
    gradients, metrics, _ = step(made, batch())
    assert torch.allclose(gradients["purifier.head.bias"], expected, rtol=1e-6, atol=1e-12)
    assert float(metrics["loss"]) == pytest.approx(mean.item(), rel=1e-9)
    assert float(metrics["kept"]) == pytest.approx(float(masks.mean()), rel=1e-9)


def test_the_attack_goes_through_the_moving_average() -> None:
    made = recipe(settings(epsilon=0.03))
    x, attacked = halves(made)
    assert float((attacked - x).abs().max()) == pytest.approx(0.03)
    space: Any = made.frozen["eigenfaces"]
    purifier = Purifier(made.frozen["copy"], space)  # type: ignore[arg-type]
    recognizer = made.frozen["recognizer"]
    with torch.no_grad():
        before, after = ((recognizer(purifier(one)) * recognizer(x)).sum(1) for one in (x, attacked))
    assert after.mean() < before.mean()
    for off in ({"epsilon": 0.0}, {"warmup_images": 108}):
        x, attacked = halves(recipe(settings(**off)))
        assert torch.equal(x, attacked)
    x, attacked = halves(recipe(settings(warmup_images=104)))
    changed = (x != attacked).flatten(1).any(1)
    assert changed.tolist() == [False] * 4 + [True] * 4, "from that position in the stream on"


def test_memory_and_copy_follow_by_a_moving_average() -> None:
    made = recipe(settings(decay=0.9, clones=2))
    selector: Any = made.networks["purifier"]
    cells = selector.memory.cells.clone()
    copied = {name: value.clone() for name, value in made.frozen["copy"].state_dict().items()}
    with torch.no_grad():
        for weight in selector.parameters():
            weight.add_(0.1)
    live = {name: value.clone() for name, value in selector.state_dict().items()}
    x, attacked = None, None
    step(made, batch())
    for name, value in made.frozen["copy"].state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.9 * copied[name] + 0.1 * live[name]), name
    x, attacked = halves(made)  # by the copy as it was in the step
    again = Selector(5, 0.9).train()
    again.load_state_dict(live)
    _, features = again(torch.cat([x, attacked]))
    cosines = F.cosine_similarity(features[:, None], cells[None], dim=2)
    weights = (16 * cosines).softmax(1)
    means = (weights.T @ features) / weights.sum(0)[:, None]
    assert torch.allclose(selector.memory.cells, 0.9 * cells + 0.1 * means, atol=1e-10)


def test_features_that_are_not_finite_leave_the_memory_alone() -> None:
    memory = Selector(5, 0.9).memory
    before = memory.cells.clone()
    memory.remember(torch.full((4, 512), torch.nan))
    assert torch.equal(memory.cells, before)


def test_a_preview_changes_nothing() -> None:
    made = recipe(settings())
    modules = [*made.networks.values(), *made.frozen.values()]
    before = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]
    pictures = made.preview(batch())
    assert pictures.keys() == made.pictures.keys()
    assert all(one.min() >= 0 and one.max() <= 1 and len(one) == 8 for one in pictures.values())
    after = [module.state_dict() for module in modules]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(before, after, strict=True) for k in a)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recognizer": ""}, "purifier.recognizer: is empty; give the run or file"),
        ({"clones": 1}, "purifier.clones: 1 is not allowed with selection: reinforce"),
        ({"components": 8}, "purifier.components: 8 is not allowed; the set has 8 faces"),
        ({"components": 4_000}, "purifier.components: 4000 is not allowed; faces have 3,072 values"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(settings(**given))


def test_no_faces_too_small_and_no_deepspeed() -> None:
    made = settings()
    check = registry.find("purifier").check
    with pytest.raises(UserError, match="size: 16 is too small; use 32 or more"):
        check(replace(made, size=16))
    with pytest.raises(UserError, match="deepspeed is not supported for a purifier"):
        check(replace(made, training=replace(made.training, strategy="deepspeed")))


def test_another_purifier_gives_its_basis() -> None:
    first, second = recipe(settings()), recipe(settings())
    images = batch().images.flip(0) // 2
    for module in (second.frozen["eigenfaces"], second.networks["purifier"]):
        for value in module.state_dict().values():
            value.mul_(0)
    state = Purifier(first.networks["purifier"], first.frozen["eigenfaces"]).state_dict()  # type: ignore[arg-type]
    second.begin({"purifier": state}, "run")
    second.learn(Everyone(8, lambda part: part(images)))
    for name in ("eigenfaces", "copy"):
        for key, value in first.frozen[name].state_dict().items():
            assert torch.equal(value, second.frozen[name].state_dict()[key])
