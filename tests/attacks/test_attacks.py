"""What every attack keeps to, and attacks on recognizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import small_onnx
from sparface.attacks.attack import Attack
from sparface.attacks.goal import Goal, expected, of_classifier, of_gallery, of_templates
from sparface.attacks.settings import USES, AttackConfig
from sparface.attacks.suite import build_attack
from sparface.attacks.trained import TrainedAttack
from sparface.errors import UserError
from sparface.models.onnx import OnnxRecognizer
from sparface.models.recognizer import Recognizer, RecognizerConfig, build_recognizer
from sparface.models.sae import GeneratorConfig, build_generator


class Grey(nn.Module):
    """Classifies by the mean of each channel."""

    def forward(self, faces: Tensor) -> Tensor:
        return 20 * faces.mean((2, 3))


CONFIGS = {
    "fgsm": AttackConfig("fgsm"),
    "fgsm l2": AttackConfig("fgsm", norm="l2"),
    "pgd": AttackConfig("pgd", steps=3, momentum=0.5, restarts=2),
    "pgd l2": AttackConfig("pgd", norm="l2", steps=3),
    "apgd": AttackConfig("apgd", steps=5, restarts=2),
    "apgd l2": AttackConfig("apgd", norm="l2", steps=5, loss="cross_entropy"),
    "pixel": AttackConfig("pixel", pixels=2, steps=2, population=5),
    "square": AttackConfig("square", queries=5),
    "trained": AttackConfig("trained"),
}


def build(name: str, epsilon: float) -> Attack:
    """An attack with a bound, if it has one; the generator is untrained."""
    config = CONFIGS[name]
    if "epsilon" in USES[config.attack]:
        config = AttackConfig(**{**vars(config), "epsilon": epsilon})
    if config.attack == "trained":
        return TrainedAttack(config.resolved(), build_generator(GeneratorConfig(width=4, blocks=1)).eval())
    return build_attack(config.resolved())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    epsilon=st.sampled_from([0.0, 1e-6, 0.03, 0.5, 1.0]),
    shape=st.tuples(st.integers(1, 3), st.just(3), st.integers(4, 13), st.integers(4, 13)),
    kind=st.sampled_from([torch.float32, torch.float64]),
    fill=st.sampled_from([0.0, 1.0, 0.5, None]),
    targeted=st.booleans(),
)
def test_no_attack_leaves_its_bound(
    name: str, epsilon: float, shape: tuple[int, ...], kind: torch.dtype, fill: float | None, targeted: bool
) -> None:
    if name == "trained":
        kind = torch.float32
    faces = torch.rand(shape, dtype=kind) if fill is None else torch.full(shape, fill, dtype=kind)
    network = nn.Sequential(
        Recognizer(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())), nn.Linear(12, 4)
    )
    goal = Goal(of_classifier(network.to(kind)), torch.arange(len(faces)) % 4, targeted)
    attack = build(name, epsilon)
    found = attack(goal, faces, torch.arange(len(faces)))
    assert found.faces.shape == faces.shape and found.faces.dtype == kind
    assert found.queries.dtype == torch.int64 and found.queries.shape == (len(faces),)
    assert found.faces.min() >= 0 and found.faces.max() <= 1
    change = found.faces - faces
    if name.endswith("l2"):
        rounding = torch.finfo(kind).eps / 2 * change[0].numel() ** 0.5  # of each pixel of face + change
        assert (change.flatten(1).norm(dim=1) <= epsilon * (1 + 1e-5) + rounding).all()
    elif name == "pixel":
        assert change.ne(0).any(1).sum((1, 2)).max() <= 2
    else:
        assert change.abs().max() <= epsilon + 1e-6


@pytest.mark.parametrize("name", ["pgd", "apgd l2", "pixel", "square"])
def test_what_is_done_to_a_face_depends_on_its_position_only(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(6, 3, 9, 9, generator=generator, dtype=torch.float64)
    labels, positions = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([5, 3, 9, 100, 4, 8])
    attack = build(name, 0.05)
    whole = attack(Goal(of_classifier(Grey()), labels), faces, positions)
    for part in ([4], [1, 5]):
        again = attack(Goal(of_classifier(Grey()), labels[part]), faces[part], positions[part])
        torch.testing.assert_close(again.faces, whole.faces[part], rtol=0, atol=0)
        assert torch.equal(again.queries, whole.queries[part])


def test_gradients_through_whitening_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    faces = torch.rand(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recognizer = Recognizer(nn.Sequential(nn.Flatten(), nn.Linear(60, 4))).double()
    templates = F.normalize(torch.randn(2, 3, 4, generator=generator, dtype=torch.float64), dim=2)
    rows, labels = torch.arange(2), torch.tensor([0, 1])
    goal = Goal(of_templates(recognizer, templates, torch.tensor([0.3, 0.1])), labels)
    for kind in ("cross_entropy", "margin"):
        slope, loss, _ = goal.ascend(faces, rows, kind)  # type: ignore[arg-type]
        for at in torch.randint(60, (8,), generator=generator).tolist():
            step = torch.zeros(60, dtype=torch.float64)
            step[at] = 1e-6
            sides = [
                goal.loss(goal.scores(faces + s * step.view(1, 3, 5, 4), rows), rows, kind)  # type: ignore[arg-type]
                for s in (1, -1)
            ]
            finite = (sides[0] - sides[1]) / 2e-6
            torch.testing.assert_close(slope.flatten(1)[:, at], finite.detach(), rtol=1e-5, atol=1e-7)
        assert loss.shape == (2,)


def test_a_recognizers_scores_are_cosines_to_people_and_a_threshold() -> None:
    generator = torch.Generator().manual_seed(2)
    embeddings = F.normalize(torch.randn(4, 8, generator=generator), dim=1)
    gallery = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    person = torch.tensor([1, 0, 1, 2, 0])
    rows = torch.tensor([2, 0])
    scores = of_gallery(lambda faces: faces, gallery, person, threshold=0.1)(embeddings[rows], rows)  # type: ignore[arg-type]
    for i, row in enumerate(rows):
        for number in range(3):
            best = max(float(embeddings[row] @ gallery[j]) for j in range(5) if person[j] == number)
            assert scores[i, number] == pytest.approx(best, abs=1e-6)
    assert (scores[:, 3] - 0.1).abs().max() < 1e-6
    templates = gallery[torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2]])]
    thresholds = torch.tensor([0.1, 0.2, 0.3, 0.4])
    scores = of_templates(lambda faces: faces, templates, thresholds)(embeddings[rows], rows)  # type: ignore[arg-type]
    for i, row in enumerate(rows):
        assert scores[i, 0] == pytest.approx(float((templates[row] @ embeddings[row]).max()), abs=1e-6)
        assert scores[i, 1] == pytest.approx(float(thresholds[row]), abs=1e-6)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "square"])
@pytest.mark.parametrize("targeted", [False, True], ids=["dodging", "impersonation"])
def test_a_recognizer_is_fooled(name: str, targeted: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recognizer = build_recognizer(RecognizerConfig("small", 32)).eval()
        faces, others = torch.rand(4, 3, 32, 32), torch.rand(4, 2, 3, 32, 32)
    own = recognizer(faces + 0.02 * torch.randn_like(faces))[:, None].detach()
    other = recognizer(others.flatten(0, 1)).view(4, 2, -1).detach()
    templates = other if targeted else own
    cosines = (recognizer(faces)[:, None] @ templates.mT)[:, 0].amax(1).detach()
    # a threshold that the faces are on the wrong side of
    thresholds = cosines + (0.002 if targeted else -0.002)
    goal = Goal(of_templates(recognizer, templates, thresholds), torch.zeros(4, dtype=torch.int64), targeted)
    rows = torch.arange(4)
    assert (goal.judge(faces, rows) > 0).all()
    assert (goal.judge(build(name, 0.05)(goal, faces, rows).faces, rows) < 0).float().mean() >= 0.5


def test_an_attack_that_averages_sees_through_a_random_defence() -> None:
    noise = torch.Generator().manual_seed(0)

    def noisy(faces: Tensor, rows: Tensor) -> Tensor:
        weights = torch.tensor([[1.0, -1.0, 0.2]]) + 3 * torch.randn(len(faces), 3, generator=noise)
        value = (faces.mean((2, 3)) * weights).sum(1)
        return torch.stack([value, -value], 1)

    faces, rows, labels = torch.full((64, 3, 4, 4), 0.5), torch.arange(64), torch.zeros(64, dtype=torch.int64)
    right = {}
    for draws in (1, 100):
        attack = build_attack(AttackConfig("fgsm", epsilon=0.1, loss="margin").resolved())
        change = attack(Goal(expected([noisy] * draws), labels), faces, rows).faces - faces
        right[draws] = ((change[:, 0] < 0) & (change[:, 1] > 0)).all(2).all(1).float().mean().item()
    assert right[1] < 0.7 and right[100] > 0.95


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for config, message in (
        (AttackConfig("fgsm", epsilon=-0.1), "--epsilon: -0.1 is not allowed; must be between 0 and 1"),
        (AttackConfig("fgsm", epsilon=float("nan")), "--epsilon: nan is not allowed"),
        (AttackConfig("fgsm", steps=3), "--steps: is not used by --attack fgsm; remove it"),
        (AttackConfig("pixel", epsilon=0.1), "--epsilon: is not used by --attack pixel; remove it"),
        (AttackConfig("cw"), "--attack: cw is unknown; use fgsm, pgd"),  # type: ignore[arg-type]
        (AttackConfig("pgd", restarts=0), "--restarts: 0 is not allowed; must be between 1 and 1,000"),
        (AttackConfig("pixel", population=3), "--population: 3 is not allowed"),
    ):
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            config.resolved()


def test_a_network_without_gradients_is_named(tmp_path: Path) -> None:
    recognizer = OnnxRecognizer(small_onnx.write(tmp_path / "small.onnx"))
    faces, rows = torch.rand(2, 3, 32, 32), torch.arange(2)
    own = recognizer(faces)[:, None]
    goal = Goal(of_templates(recognizer, own, torch.zeros(2)), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match="--attack: needs gradients, which this network does not give"):
        build("pgd", 0.1)(goal, faces, rows)
    assert build("square", 0.1)(goal, faces, rows).faces.shape == faces.shape
