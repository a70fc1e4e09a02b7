"""A step of the sparring recipe against plain formulas: gradients, metrics and statistics, by setting.

The reference knows nothing of phases, handed-off gradients or split norms: it runs the recognizer once for
real and once for sparring faces, and lets autograd differentiate each network's objective.
"""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import formulas
import pytest
import torch
from small import IDENTITIES, batch, config, difference, recipe, step
from torch import Tensor, nn

from sparface.config import Config
from sparface.models.sae import GeneratorConfig
from sparface.randomness import normal
from sparface.recipes.recognizer import ObjectiveConfig
from sparface.recipes.sparring_config import SparringConfig
from sparface.variation import classic

pytestmark = pytest.mark.usefixtures("float64")
NOISE_STREAM = 2
ATTACKS = ["untargeted", "targeted", "zero_sum"]
OBJECTIVE: list[dict[str, Any]] = [
    {"weight": 0.2},
    {"weight": 0.0},
    {"attack_weight": 3.0},
    {"perturbation_weight": 0.7},
    {"mask_weight": 2.0},
    {"mask_area": 0.0},
    {"mask_area": 1.0},
    {"triplet": 0.0},
    {"margin": 0.6},
    {"mining": "batch_hard"},
    {"cross_entropy": 0.0, "arcface": 0.0},
]
GENERATOR: list[dict[str, Any]] = [{"noise": 0.0}, {"noise": 2.0}, {"epsilon": 0.02}, {"epsilon": 0.5}]


def target(identity: int, seed: int) -> int:
    """Each identity's target: the one so many further on, round the end."""
    return (identity + 1 + random.Random(seed).randrange(IDENTITIES - 1)) % IDENTITIES


class Reference:
    """The expected step."""

    def __init__(self, config: Config) -> None:
        objective, spar = config.block(ObjectiveConfig), config.block(SparringConfig)
        generating = config.block(GeneratorConfig)
        faces = batch()
        labels = faces.labels.tolist()
        split = spar.batchnorm == "split"
        # the same weights, but the norms are as they are in the backbone
        plain = replace(config, blocks=config.blocks | {"sparring": replace(spar, batchnorm="shared")})
        networks = recipe(plain).networks
        generator, recognizer = networks["generator"], networks["recognizer"]
        head: Any = networks["head"].weight if "head" in networks else None
        self.recognizers = [recognizer, copy.deepcopy(recognizer)] if split else [recognizer]

        x = classic.vary(faces.images / 255, config.training.seed, faces.positions)
        channels = 4 * generating.width
        noise = normal(config.training.seed, faces.positions, (channels, 1, 1), NOISE_STREAM).double()
        epsilon = generating.epsilon
        delta, mask = generator(x, noise)
        change = epsilon * delta * mask
        sparring_faces = (x + change).clamp(0, 1)
        whitened = [formulas.whitened(x), formulas.whitened(sparring_faces)]
        if split:
            real, sparring = (r(w, whitened=True) for r, w in zip(self.recognizers, whitened, strict=True))
        else:
            real, sparring = recognizer(torch.cat(whitened), whitened=True).chunk(2)

        on_real, metrics = formulas.identity_loss(objective, real, real, labels, head)
        on_sparring, more = formulas.identity_loss(objective, sparring, real, labels, head)
        loss = on_real + spar.weight * on_sparring
        cosines = torch.stack([a @ b for a, b in zip(real, sparring, strict=True)])
        if spar.attack == "zero_sum":
            attack = -loss
        elif spar.attack == "untargeted":
            attack = formulas.untargeted(real.detach(), sparring, labels)
        else:
            assert head is not None
            targets = [target(label, config.training.seed) for label in labels]
            attack = formulas.targeted(sparring, head, targets)
        before = formulas.recognized(real, real, labels)
        after = formulas.recognized(sparring, real, labels)
        fooled = [was and not still for was, still in zip(before, after, strict=True)]
        norm = torch.stack([c.square().sum().sqrt() for c in change]).mean()
        above = torch.stack([(m.mean() - spar.mask_area).clamp(min=0) for m in mask]).mean()
        generator_loss = (
            spar.attack_weight * attack + spar.perturbation_weight * norm + spar.mask_weight * above
        )
        self.metrics = {
            **metrics,
            **{f"sparring_{name}": value for name, value in more.items()},
            "loss": loss,
            "embedding_cosine": formulas.mean_cosine_of_pairs(real),
            "perturbation_norm": norm,
            "mask_mean": mask.mean(),
            "perturbation_mean": change.abs().mean(),
            "generator_loss": generator_loss,
            "attack": attack,
            "shift": 1 - cosines.mean(),
            "fooled": torch.tensor(sum(fooled) / len(fooled)),
        }
        self.gradients = slopes(generator_loss, {"generator": generator})
        self.gradients |= self.of_recognition(loss, head)
        self.buffers = {f"generator.{name}": buffer for name, buffer in generator.named_buffers()}
        self.buffers |= self.statistics()

    def statistics(self) -> dict[str, Tensor]:
        """Of the recognizer's norms, each after one forward."""
        kinds = ("main.", "auxiliary.") if len(self.recognizers) == 2 else ("",)
        return {
            f"recognizer.{owner}.{kind}{name}": buffer
            for kind, recognizer in zip(kinds, self.recognizers, strict=True)
            for owner, module in recognizer.named_modules()
            for name, buffer in module.named_buffers(recurse=False)
        }

    def of_recognition(self, loss: Tensor, head: nn.Parameter | None) -> dict[str, Tensor]:
        """With split norms: each half of the batch has its own, all else is shared."""
        if len(self.recognizers) == 1:
            gradients = slopes(loss, {"recognizer": self.recognizers[0]})
        else:
            real, sparring = (slopes(loss, {"recognizer": r}) for r in self.recognizers)
            norms = {
                f"recognizer.{name}"
                for name, module in self.recognizers[0].named_modules()
                if isinstance(module, nn.BatchNorm2d)
            }
            gradients = {}
            for name in real:
                owner, _, kind = name.rpartition(".")
                if owner in norms:
                    gradients[f"{owner}.main.{kind}"] = real[name]
                    gradients[f"{owner}.auxiliary.{kind}"] = sparring[name]
                else:
                    gradients[name] = real[name] + sparring[name]
        if head is not None:
            gradients["head.weight"] = torch.autograd.grad(loss, head, retain_graph=True)[0]
        return gradients


def slopes(loss: Tensor, networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    named = {f"{n}.{k}": p for n, network in networks.items() for k, p in network.named_parameters()}
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


def assert_same_step(config: Config) -> None:
    expected = Reference(config)
    gradients, metrics, buffers = step(recipe(config), batch())
    assert difference(expected.gradients, gradients) < 1e-9
    assert difference(expected.buffers, buffers) < 1e-9
    assert metrics.keys() == expected.metrics.keys()
    for name, value in metrics.items():
        expected_value = float(expected.metrics[name].detach())
        assert float(value) == pytest.approx(expected_value, rel=1e-9), name


def settings(*, generator: dict[str, Any] | None = None, **others: Any) -> Config:
    made = config(**others)
    generating = replace(made.block(GeneratorConfig), **(generator or {}))
    return replace(made, blocks=made.blocks | {"generator": generating})


@pytest.mark.parametrize("update", ["shared", "alternating"])
@pytest.mark.parametrize("batchnorm", ["split", "shared"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_step_is_the_formula(attack: str, batchnorm: str, update: str) -> None:
    assert_same_step(settings(attack=attack, batchnorm=batchnorm, update=update))


@pytest.mark.parametrize("update", ["shared", "alternating"])
@pytest.mark.parametrize("objective", OBJECTIVE, ids=str)
def test_each_objective_setting(objective: dict[str, Any], update: str) -> None:
    assert_same_step(settings(update=update, **objective))


@pytest.mark.parametrize("generator", GENERATOR, ids=str)
def test_each_generator_setting(generator: dict[str, Any]) -> None:
    assert_same_step(settings(generator=generator))


def test_a_preview_is_the_generator_in_evaluation() -> None:
    made = settings(generator={"noise": 0.5, "epsilon": 0.3})
    faces = batch()
    shown = recipe(made).preview(faces)
    generator = recipe(made).networks["generator"].eval()
    x = classic.vary(faces.images / 255, made.training.seed, faces.positions)
    noise = normal(made.training.seed, faces.positions, (16, 1, 1), NOISE_STREAM).double()
    with torch.no_grad():
        delta, mask = generator(x, noise)
    expected = {
        "face": x,
        "perturbation": (delta * mask + 1) / 2,
        "mask": torch.cat([mask, mask, mask], 1),
        "sparring": (x + 0.3 * delta * mask).clamp(0, 1),
        "whitened": (formulas.whitened(x) / 6 + 0.5).clamp(0, 1),
    }
    assert shown.keys() == expected.keys()
    for name, images in expected.items():
        torch.testing.assert_close(shown[name], images, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("update", ["shared", "alternating"])
def test_losses_are_not_rounded_under_autocast(attack: str, update: str) -> None:
    """Only the networks compute in bf16: their embeddings are taken as they come."""
    torch.set_default_dtype(torch.float32)
    made = recipe(settings(attack=attack, update=update))
    seen: list[Tensor] = []
    made.networks["recognizer"].register_forward_hook(lambda *call: seen.append(call[-1].detach().double()))
    head = made.networks["head"].weight.detach().double()  # type: ignore[union-attr]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, metrics, _ = step(made, batch())
    real, sparring = seen[-1].chunk(2)
    labels, objective = batch().labels.tolist(), made.config.block(ObjectiveConfig)
    on_real, terms = formulas.identity_loss(objective, real, real, labels, head)
    on_sparring, more = formulas.identity_loss(objective, sparring, real, labels, head)
    expected = {**terms, **{f"sparring_{name}": value for name, value in more.items()}}
    expected["loss"] = loss = on_real + 0.7 * on_sparring
    if attack == "targeted":
        expected["attack"] = formulas.targeted(sparring, head, [target(label, 3) for label in labels])
    else:
        expected["attack"] = -loss if attack == "zero_sum" else formulas.untargeted(real, sparring, labels)
    distances = [1 - a @ b for a, b in zip(real, sparring, strict=True)]
    expected["shift"] = torch.stack(distances).mean()
    expected["embedding_cosine"] = formulas.mean_cosine_of_pairs(real)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=2e-4, abs=2e-6), name


def test_a_gradient_scaler_changes_no_gradient() -> None:
    """The handed-off gradient is computed at its scale, and comes back without it."""
    made = recipe(settings(update="shared"))
    made.scale = lambda values: 1024 * values
    gradients, _, _ = step(made, batch())
    assert difference(Reference(settings()).gradients, gradients) < 1e-9


@pytest.mark.parametrize("own", [2e-3, 0.5, 0.0])
def test_the_generators_own_rate(own: float) -> None:
    made = recipe(settings(generator_learning_rate=own))
    rates = [made.learning_rate(network) for network in ("generator", "recognizer", "head")]
    assert rates == [own, 2e-4, 2e-4]
