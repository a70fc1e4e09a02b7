from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import IDENTITIES, batch, config, difference, recipe, step

from sparface.errors import UserError
from sparface.recipes import build_recipe

ATTACKS = ["untargeted", "targeted", "zero_sum"]
WATCHED = {"loss", "embedding_cosine", "mask_mean", "perturbation_mean", "shift", "fooled"}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("batchnorm", ["split", "shared"])
def test_shared_and_alternating_are_the_same_step(attack: str, batchnorm: str) -> None:
    """Gradients of all networks, metrics and buffers, from the same state."""
    steps = [
        step(recipe(config(attack=attack, update=update, batchnorm=batchnorm)), batch())
        for update in ("shared", "alternating")
    ]
    for shared, alternating in zip(*steps, strict=True):
        assert difference(shared, alternating) < 1e-9
    assert all(g.isfinite().all() for g in steps[0][0].values())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("attack", ATTACKS)
def test_generator_gradient_is_the_slope_of_its_objective(attack: str) -> None:
    """Central differences of the reported generator loss along the gradient."""
    made = recipe(config(attack=attack, mask_weight=0.3))
    state = {k: v.clone() for k, v in made.networks["generator"].state_dict().items()}
    gradients, _, _ = step(made, batch())
    parameters = dict(made.networks["generator"].named_parameters())
    slope = sum(float(g.square().sum()) for k, g in gradients.items() if k.startswith("generator.")) ** 0.5
    values = []
    for change in (1e-7, -1e-7):
        made.networks["generator"].load_state_dict(state)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter += change / slope * gradients[f"generator.{name}"]
        values.append(float(step(made, batch())[1]["generator_loss"]))
    assert slope > 0.01
    assert (values[0] - values[1]) / 2e-7 == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("update", ["shared", "alternating"])
def test_a_step_updates_every_statistic_once(update: str) -> None:
    _, _, buffers = step(recipe(config(update=update)), batch())
    counts = [int(b) for k, b in buffers.items() if k.endswith("num_batches_tracked")]
    assert set(counts) == {1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["recognizer", "sparring"])
def test_metrics_and_losses_are_float32_scalars_under_autocast(kind: str, dtype: torch.dtype) -> None:
    made = recipe(config(kind))
    with torch.autocast("cpu", dtype=dtype):
        gradients, metrics, _ = step(made, batch())
    assert all(m.dtype == torch.float32 and m.dim() == 0 and not m.requires_grad for m in metrics.values())
    assert all(g.isfinite().all() for g in gradients.values())
    expected = WATCHED if kind == "sparring" else {"loss", "embedding_cosine"}
    assert expected <= metrics.keys()


def test_head_only_where_a_loss_over_identities_is_on() -> None:
    made = recipe(config("recognizer", cross_entropy=0.0, arcface=0.0))
    assert set(made.networks) == {"recognizer"}
    gradients, metrics, _ = step(made, batch())
    assert set(metrics) == {"loss", "triplet", "embedding_cosine"}
    assert any(g.abs().sum() > 0 for g in gradients.values())


def test_targets_are_other_identities_each_once_by_the_seed() -> None:
    """The generator is not told the target: only one that is always the same can be learned."""
    labels = torch.arange(IDENTITIES)
    drawn = set()
    for seed in range(20):
        settings = config(attack="targeted")
        settings.training.seed = seed
        targets = [recipe(settings).term.target(labels) for _ in range(2)]  # type: ignore[attr-defined]
        assert torch.equal(*targets) and (targets[0] != labels).all()
        assert torch.equal(targets[0].sort().values, labels)
        drawn.add(tuple(targets[0].tolist()))
    assert len(drawn) == IDENTITIES - 1


def test_a_targeted_attack_is_the_distance_to_the_targets_direction() -> None:
    settings = config(attack="targeted", perturbation_weight=0.0, mask_weight=0.0)
    made, faces = recipe(settings), batch()
    head = made.networks["head"]
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    _, metrics, _ = step(made, faces)
    sparring = seen[0][len(faces.labels) :]
    directions = torch.nn.functional.normalize(head.weight.detach(), dim=1)  # type: ignore[operator]
    targets = directions[made.term.target(faces.labels)]  # type: ignore[attr-defined]
    expected = (sparring - targets).square().sum(1).mean()
    assert float(metrics["attack"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("attack", ["untargeted", "zero_sum"])
def test_the_generator_learns_to_change_decisions(attack: str) -> None:
    """Against a fixed recognizer, from the first step on: the attack is not flat where nothing has moved."""
    made, faces = recipe(config(attack=attack, mask_weight=0.0, perturbation_weight=0.0)), batch()
    optimizer = torch.optim.Adam(made.networks["generator"].parameters(), 2e-3)
    shifts = []
    for _ in range(30):
        shifts.append(float(step(made, faces)[1]["shift"]))
        optimizer.step()
    assert shifts[-1] > 3 * shifts[0]


def test_changes_stay_where_the_recognizer_ignores_them() -> None:
    """By default, the mask shrinks to its free area, but no further, so the generator can come back."""
    made, faces = recipe(config(attack_weight=0.0)), batch()
    optimizer = torch.optim.Adam(made.networks["generator"].parameters(), 2e-3)
    masks = []
    for _ in range(60):
        masks.append(float(step(made, faces)[1]["mask_mean"]))
        optimizer.step()
    assert 0.15 < masks[-1] < 0.35 < masks[0], masks


@pytest.mark.parametrize("kind", ["recognizer", "sparring"])
def test_preview_shows_images_and_changes_nothing(kind: str) -> None:
    made = recipe(config(kind))
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in made.networks.items()}
    images = made.preview(batch())
    shown_by_sparring = ["perturbation", "mask", "sparring"] if kind == "sparring" else []
    names = ["face", *shown_by_sparring, "whitened"]
    assert list(images) == names
    for shown in images.values():
        assert shown.shape == (8, 3, 32, 32) and not shown.requires_grad
        assert shown.min() >= 0 and shown.max() <= 1
    assert all(
        torch.equal(v, before[n][k]) for n, m in made.networks.items() for k, v in m.state_dict().items()
    )
    assert all(m.training for m in made.networks.values())


def test_variation_is_by_position() -> None:
    settings = config("recognizer")
    plain = replace(settings, data=replace(settings.data, variation="none"))
    faces = batch()
    face = recipe(plain).preview(faces)["face"]
    torch.testing.assert_close(face, faces.images / 255)
    changed = recipe(settings).preview(faces)["face"]
    assert not torch.equal(changed, face)
    assert torch.equal(changed[4:], recipe(settings).preview(faces.part(1, 2))["face"])


def test_faces_that_are_not_varied_reach_the_recognizer_as_bytes() -> None:
    settings = config("recognizer")
    made = recipe(replace(settings, data=replace(settings.data, variation="none")))
    seen: list[torch.dtype] = []
    made.networks["recognizer"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    gradients, _, _ = step(made, batch())
    assert seen == [torch.uint8] and all(g.isfinite().all() for g in gradients.values())


def test_settings_that_cannot_work() -> None:
    small = replace(config(facenet=True), size=64)
    with pytest.raises(UserError, match="size: 64 is too small"):
        build_recipe(small, 6)
    with pytest.raises(UserError, match="1 identity"):
        build_recipe(config(), 1)
    lonely = config()
    lonely.data.identities_per_batch = 1
    with pytest.raises(UserError, match="identities_per_batch to 2 or more"):
        build_recipe(lonely, 6)
    with pytest.raises(UserError, match="targeted needs an identity head"):
        build_recipe(config(attack="targeted", cross_entropy=0.0, arcface=0.0), 6)
