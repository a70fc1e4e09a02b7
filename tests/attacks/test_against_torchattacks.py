"""Attacks on a classifier, against torchattacks."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from scipy.stats import fisher_exact

from digits import Digits
from sparface.attacks.goal import Goal, of_classifier
from sparface.attacks.gradient import PGD
from sparface.attacks.settings import AttackConfig
from sparface.attacks.suite import build_attack

POSITIONS = torch.arange(256)


def test_fgsm_makes_the_same_images(digits: Digits) -> None:
    attack = build_attack(AttackConfig("fgsm", epsilon=0.1).resolved())
    ours = attack(digits.goal(), digits.images, POSITIONS)
    theirs = torchattacks.FGSM(digits.network, 0.1)(digits.images, digits.labels)
    torch.testing.assert_close(ours.faces, theirs, rtol=0, atol=0)
    assert digits.right(ours.faces) < digits.right(digits.images) / 2


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        (AttackConfig("pgd", epsilon=0.1, steps=10, step_size=0.02), torchattacks.PGD),
        (AttackConfig("pgd", epsilon=0.1, steps=10, step_size=0.02, momentum=1.0), torchattacks.MIFGSM),
        (AttackConfig("pgd", norm="l2", epsilon=1.0, steps=10, step_size=0.2), torchattacks.PGDL2),
    ],
    ids=["linf", "momentum", "l2"],
)
def test_pgd_makes_the_same_images_from_the_same_start(
    digits: Digits, settings: AttackConfig, reference: type[torchattacks.PGD]
) -> None:
    more = {} if settings.momentum else {"random_start": False}
    theirs = reference(digits.network, settings.epsilon, settings.step_size, steps=10, **more)
    # torchattacks takes the gradient of a batch's mean, and adds 1e-10 to its length: one face at a time,
    # and only faces whose gradient is not tiny
    unsure = [
        number
        for number in range(256)
        if digits.network(digits.images[number : number + 1]).softmax(1).max() < 0.99
    ]
    assert len(unsure) > 20
    goal = digits.goal()
    ours = PGD(settings.resolved())(goal, digits.images, POSITIONS, start=digits.images).faces
    for number in unsure[:20]:
        one = slice(number, number + 1)
        expected = theirs(digits.images[one], digits.labels[one])
        torch.testing.assert_close(digits.network(ours[one]), digits.network(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "theirs", "norm", "epsilon"),
    [
        ("cross_entropy", "ce", "linf", 0.03),
        ("cross_entropy", "ce", "l2", 0.4),
        ("margin", "dlr", "linf", 0.03),
        ("margin", "dlr", "linf", 0.06),
    ],
)
def test_apgd_leaves_the_same_accuracy(
    digits: Digits, loss: str, theirs: str, norm: str, epsilon: float
) -> None:
    settings = AttackConfig("apgd", epsilon=epsilon, norm=norm, loss=loss, steps=50).resolved()  # type: ignore[arg-type]
    ours = build_attack(settings)(digits.goal(), digits.images, POSITIONS)
    reference = torchattacks.APGD(
        digits.network, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, steps=50, loss=theirs
    )
    expected = digits.right(reference(digits.images, digits.labels))
    assert 0.1 * 256 < expected < 0.9 * 256
    assert abs(digits.right(ours.faces) - expected) <= 0.005 * 256


def test_a_few_pixels_succeed_as_often(digits: Digits) -> None:
    margins = digits.goal().judge(digits.images, POSITIONS)
    unsure = margins.where(margins > 0, torch.inf).argsort()[:64]  # the others stay
    images, labels = digits.images[unsure], digits.labels[unsure]
    settings = AttackConfig("pixel", pixels=5, population=25, steps=10).resolved()
    ours = build_attack(settings)(Goal(of_classifier(digits.network), labels), images, POSITIONS[:64])
    theirs = torchattacks.OnePixel(digits.network, pixels=5, steps=10, popsize=25)(images, labels)
    found, expected = ((digits.network(x).argmax(1) != labels).sum().item() for x in (ours.faces, theirs))
    assert 8 < found < 56
    assert fisher_exact([[found, 64 - found], [expected, 64 - expected]]).pvalue > 0.05
    assert (ours.faces != images).any(1).sum((1, 2)).max() == 5
    assert ours.queries.max() == 275 and ours.queries.min() == 25


def test_random_search_of_pixels_is_weaker_than_evolution(digits: Digits) -> None:
    left = {}
    for search in ("random", "evolution"):
        settings = AttackConfig("pixel", pixels=4, population=20, steps=20, search=search).resolved()  # type: ignore[arg-type]
        left[search] = digits.right(
            build_attack(settings)(digits.goal(96), digits.images[:96], POSITIONS[:96]).faces
        )
    assert left["evolution"] < left["random"] < digits.right(digits.images[:96])


def test_square_leaves_a_similar_accuracy(digits: Digits) -> None:
    settings = AttackConfig("square", epsilon=0.1, queries=200).resolved()
    ours = build_attack(settings)(digits.goal(128), digits.images[:128], POSITIONS[:128])
    reference = torchattacks.Square(digits.network, eps=0.1, n_queries=200, loss="margin")
    expected = digits.right(reference(digits.images[:128], digits.labels[:128]))
    found = digits.right(ours.faces)
    assert found < digits.right(digits.images[:128]) - 20
    assert fisher_exact([[found, 128 - found], [expected, 128 - expected]]).pvalue > 0.05
    reached = digits.network(ours.faces).argmax(1) != digits.labels[:128]
    assert (ours.queries[~reached] == 200).all() and (ours.queries[reached] <= 200).all()
