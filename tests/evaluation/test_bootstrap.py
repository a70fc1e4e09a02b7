"""Bootstrap over identities against a data set in which every drawn person is copied out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparface.evaluation.bootstrap import bootstrap, difference, multiplicities
from sparface.evaluation.scores import roc
from sparface.evaluation.weighted import Impostors, Pairs, accepted, accuracy, average, mean

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
PEOPLE = 5
FARS = st.sampled_from([0, 0.1, 0.5, 1])


def pairs(seed: int, count: int, levels: int) -> tuple[Floats, Ints, Ints]:
    """Scores of pairs of faces with many ties, and whose faces they are."""
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, PEOPLE, (2, count))
    one[:2], other[:2] = [0, 0], [0, 1]
    return rng.integers(0, levels, count) / levels, one, other


def copied(weights: Ints, score: Floats, one: Ints, other: Ints) -> tuple[list[float], list[float]]:
    """Genuine and impostor scores among all copies of the people; copies of one person never meet."""
    genuine: list[float] = []
    impostor: list[float] = []
    for value, a, b in zip(score, one, other, strict=True):
        if a == b:
            genuine += [value] * weights[a]
        else:
            impostor += [value for _ in range(weights[a]) for _ in range(weights[b])]
    return genuine, impostor


def tar(genuine: list[float], impostor: list[float], far: float) -> float:
    """By trying every threshold."""
    best = 0.0
    for threshold in [-np.inf, *impostor]:
        if np.mean(np.array(impostor) > threshold) <= far:
            best = max(best, float(np.mean(np.array(genuine) > threshold)))
    return best


@given(
    st.integers(0, 10_000),
    st.integers(2, 60),
    st.sampled_from([2, 7, 1000]),
    st.sampled_from([0, 0.1, 0.5, 1]),
)
@settings(max_examples=60, deadline=None)
def test_tar_at_far_is_that_of_the_copied_people(seed: int, count: int, levels: int, far: float) -> None:
    score, one, other = pairs(seed, count, levels)
    same = one == other
    impostors = Impostors.of(score[~same], one[~same], other[~same])
    statistic = accepted(score[same], one[same], impostors, far)
    drawn = multiplicities(PEOPLE, 20, seed)
    for weights, found in zip(drawn, statistic(drawn), strict=True):
        genuine, impostor = copied(weights.astype(int), score, one, other)
        if genuine and impostor:
            assert found == pytest.approx(tar(genuine, impostor, far))
        else:
            assert np.isnan(found)


@given(st.integers(0, 10_000), st.integers(4, 60), st.sampled_from([2, 7, 1000]))
@settings(max_examples=60, deadline=None)
def test_verification_is_that_of_the_copied_people(seed: int, count: int, levels: int) -> None:
    """Against the figures of `scores`, which agree with scikit-learn's."""
    score, one, other = pairs(seed, count, levels)
    same = one == other
    of_pairs = Pairs.of(1 - score, same, one, other)
    folds, right = np.arange(count) % 3, score > 0.5
    drawn = multiplicities(PEOPLE, 10, seed)
    found = [of_pairs.auc(drawn), of_pairs.eer(drawn), of_pairs.tar_at(0.1)(drawn)]
    correct = accuracy(right == same, folds, one, other)(drawn)
    for row, weights in enumerate(drawn.astype(int)):
        times = np.where(same, weights[one], weights[one] * weights[other])
        everything = np.repeat(np.arange(count), times)
        shares = [np.mean((right == same)[everything[folds[everything] == f]]) for f in range(3)
                  if (folds[everything] == f).any()]  # fmt: skip
        assert correct[row] == pytest.approx(np.mean(shares)) if shares else np.isnan(correct[row])
        if len(set(same[everything])) < 2:
            assert all(np.isnan(values[row]) for values in found)
            continue
        plain = roc(1 - score[everything], same[everything])
        expected = [plain.auc, plain.eer, plain.tar_at(0.1)]
        np.testing.assert_allclose([values[row] for values in found], expected)


def test_a_pair_of_one_person_weighs_as_the_person_does() -> None:
    """Also if a list says that they are different."""
    of_pairs = Pairs.of(np.array([0.1, 0.2]), np.array([True, False]), np.array([0, 1]), np.array([0, 1]))
    np.testing.assert_array_equal(of_pairs.weights(np.array([[3.0, 2.0]])), [[3, 2]])


def test_many_impostors_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few highest scores suffice in general; where they do not, more are taken."""
    monkeypatch.setattr("sparface.evaluation.weighted._FEW", 10)
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 30, (2, 20_000))
    score = np.round(rng.normal(size=20_000) + one / 10, 2)
    same = one == other
    impostors = Impostors.of(score[~same], one[~same], other[~same])
    drawn = multiplicities(30, 8)
    for far in (1e-3, 0.3):
        monkeypatch.setattr("sparface.evaluation.weighted._MARGIN", 0.2)
        monkeypatch.setattr("sparface.evaluation.weighted._LEAST", 1)
        few = impostors.threshold(drawn, far)
        monkeypatch.setattr("sparface.evaluation.weighted._LEAST", 1 << 20)
        np.testing.assert_array_equal(few, impostors.threshold(drawn, far))


def test_a_mean_is_weighted_by_the_owner() -> None:
    values, owner = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 2])
    found = mean(values, owner, 4)(np.array([[1.0, 1, 1, 1], [2, 0, 0, 2], [0, 2, 2, 0], [0, 0, 0, 4]]))
    np.testing.assert_allclose(found, [0.75, 0.5, 1.0, np.nan])
    half = average([mean(values, owner, 4), lambda weights: np.zeros(len(weights))])
    assert half(np.ones((1, 4)))[0] == 0.375


def test_the_interval_of_a_mean_is_that_of_the_people() -> None:
    """Of 200 people with 10 equal faces each: the standard error is that of 200 values, not of 2,000."""
    rng = np.random.default_rng(1)
    right = rng.random(200) < 0.7
    found = bootstrap(mean(np.repeat(right, 10), np.repeat(np.arange(200), 10), 200), 200)
    error = np.sqrt(right.mean() * (1 - right.mean()) / 200)
    assert found.value == pytest.approx(right.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    again = bootstrap(mean(np.repeat(right, 10), np.repeat(np.arange(200), 10), 200), 200)
    np.testing.assert_array_equal(found.replicates, again.replicates)


def test_paired_differences_are_sharper_than_the_figures() -> None:
    rng = np.random.default_rng(2)
    skill, owner = rng.random(150), np.arange(150)
    first = bootstrap(mean(skill, owner, 150), 150)
    second = bootstrap(mean(skill - 0.05 + 0.01 * rng.normal(size=150), owner, 150), 150)
    gain = difference(first, second)
    assert gain.low < 0.05 < gain.high and gain.high - gain.low < 0.1 * (first.high - first.low)
    with pytest.raises(ValueError, match="shape"):
        difference(first, bootstrap(mean(skill, owner, 150), 150, replicates=10))


def test_one_identity_and_what_is_never_defined() -> None:
    alone = bootstrap(mean([1.0, 0.0], np.array([0, 0]), 1), 1)
    assert (alone.value, alone.low, alone.high) == (0.5, 0.5, 0.5)
    never = bootstrap(lambda weights: np.full(len(weights), np.nan), 3)
    assert np.isnan([never.value, never.low, never.high]).all()


def test_everybody_is_drawn_as_often_as_there_are_people() -> None:
    drawn = multiplicities(40, 500, seed=3)
    assert drawn.shape == (500, 40) and (drawn.sum(1) == 40).all()
    assert drawn.var() == pytest.approx(1 - 1 / 40, rel=0.05)
