"""What a recipe is made of, and what is refused with which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
from small import IDENTITIES, config

from sparface.config import Config
from sparface.errors import UserError
from sparface.kernels import dispatch
from sparface.models.sae import SAE
from sparface.recipes import Phase, build_recipe, registry
from sparface.recipes.recognizer import RecognizerRecipe
from sparface.sparring.terms import Targeted

ALL = ("recognizer", "head")


def phases(settings: Config) -> list[tuple[str, tuple[str, ...]]]:
    return [(phase.name, phase.updates) for phase in build_recipe(settings, IDENTITIES).phases()]


def test_phases_and_what_they_update() -> None:
    assert phases(config("recognizer")) == [("recognizer", ALL)]
    assert phases(config(update="shared")) == [("sparring", ("generator", *ALL))]
    assert phases(config(update="alternating")) == [("generator", ("generator",)), ("recognizer", ALL)]
    without: dict[str, Any] = {"cross_entropy": 0.0, "arcface": 0.0}
    assert phases(config("recognizer", **without)) == [("recognizer", ("recognizer",))]
    assert phases(config(update="shared", **without)) == [("sparring", ("generator", "recognizer"))]


def refused(settings: Config, identities: int = IDENTITIES) -> str:
    with pytest.raises(UserError) as caught:
        build_recipe(settings, identities)
    return str(caught.value)


def sized(size: int, facenet: bool) -> Config:
    return replace(config("recognizer", facenet=facenet), size=size)


def test_facenet_needs_75_pixels() -> None:
    assert refused(sized(74, True)) == "size: 74 is too small for inception_resnet_v1; use 75 or more"
    build_recipe(sized(75, True), IDENTITIES)
    build_recipe(sized(32, False), IDENTITIES)


@pytest.mark.parametrize("kind", ["recognizer", "sparring"])
def test_two_identities_at_least(kind: str) -> None:
    message = f"data.shards: the set has 1 identity, but the recipe {kind} needs at least 2; use a larger set"
    assert refused(config(kind), 1) == message
    assert refused(config(kind), 0).startswith("data.shards: the set has 0 identities, but")
    build_recipe(config(kind), 2)


def test_a_loss_is_needed() -> None:
    assert refused(config("recognizer", triplet=0.0, cross_entropy=0.0, arcface=0.0)) == (
        "objective.triplet: 0, like objective.cross_entropy and objective.arcface; set one above 0"
    )
    build_recipe(config("recognizer", triplet=1.0, cross_entropy=1.0, arcface=1.0), IDENTITIES)


def test_a_phase_says_what_to_set_where_gradients_inside_a_loss_are_not_supported() -> None:
    def hints(**settings: Any) -> list[str]:
        return [phase.inner_gradients for phase in build_recipe(config(**settings), IDENTITIES).phases()]

    instead = "sparring.update: alternating, which has the same gradients"
    assert hints(update="shared", attack="untargeted") == [instead]
    assert hints(update="shared", attack="zero_sum") == [""]
    assert hints(update="alternating") == ["", ""]


def test_what_a_checkpoint_must_match() -> None:
    recognizer = {"recognizer": ["timm:test_resnet", 16]}
    assert build_recipe(config("recognizer"), IDENTITIES).identity(config("recognizer")) == recognizer
    made = config(batchnorm="split")
    sparring = recognizer | {"generator": [SAE.FORM, 4, 1]}
    assert build_recipe(made, IDENTITIES).identity(made) == sparring


def test_what_is_watched() -> None:
    def kinds(made: Config) -> list[str]:
        return [rule.kind for rule in build_recipe(made, IDENTITIES).rules()]

    assert kinds(config("recognizer")) == ["collapse"]
    assert kinds(config())[0] == "collapse" and "dead_generator" in kinds(config())


def batched(groups: int, **settings: Any) -> Config:
    made = config(**settings)
    return replace(made, data=replace(made.data, identities_per_batch=groups))


def test_an_attack_needs_someone_to_be_taken_for() -> None:
    assert refused(batched(1, attack="untargeted")) == (
        "sparring.attack: untargeted needs at least two identities in a batch; "
        "set data.identities_per_batch to 2 or more"
    )
    for settings in (
        batched(2, attack="untargeted"),
        batched(1, attack="targeted"),
        batched(1, attack="zero_sum"),
        batched(1, kind="recognizer"),
    ):
        build_recipe(settings, IDENTITIES)


def test_targets_are_the_heads() -> None:
    assert refused(config(attack="targeted", cross_entropy=0.0, arcface=0.0)) == (
        "sparring.attack: targeted needs an identity head; "
        "set objective.cross_entropy or objective.arcface above 0"
    )
    for share in (0.0, 1.0):
        settings = config(attack="targeted", cross_entropy=share, arcface=1 - share)
        build_recipe(settings, IDENTITIES)
    build_recipe(config(attack="untargeted", cross_entropy=0.0, arcface=0.0), IDENTITIES)


def test_kernels_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda: False)
    made = config()
    message = refused(replace(made, training=replace(made.training, kernels="triton")))
    assert message.startswith("training.kernels: triton is not installed")


def test_targets_go_round_and_depend_on_the_seed() -> None:
    aims = set()
    for seed in range(12):
        made = config(attack="targeted")
        aims.add(Targeted(replace(made, training=replace(made.training, seed=seed)), 3).aim)
    assert aims == {1, 2}
    assert Targeted(config(), 2).aim == 1


class Sometimes(RecognizerRecipe):
    """Trains in every second step and, with `third`, also in every third."""

    third: ClassVar[bool] = False

    def phases(self) -> list[Phase]:
        (often,) = super().phases()
        return [replace(often, every=2), *([replace(often, every=3)] if self.third else [])]


@pytest.mark.parametrize("third", [False, True])
def test_every_step_needs_a_phase(third: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 1 and 5 would have none, even with both phases."""
    monkeypatch.setattr(registry, "find", lambda name: Sometimes)
    monkeypatch.setattr(Sometimes, "third", third)
    message = "recipe: recognizer has steps without a phase; let one phase have every=1"
    assert refused(config("recognizer")) == message
