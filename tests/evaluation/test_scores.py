"""Verification figures against scikit-learn, brute force and hand-made cases."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score, roc_curve

from sparface.evaluation.scores import Roc, best_threshold, distances, roc, verify_pairs

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@st.composite
def scored_pairs(draw: st.DrawFn) -> tuple[Floats, Bools]:
    """Distances with many ties, and truths with both kinds."""
    count = draw(st.integers(4, 60))
    kinds = st.one_of(st.integers(0, 6).map(float), st.floats(0, 2, allow_nan=False))
    distance = draw(hnp.arrays(np.float64, count, elements=kinds))
    same = draw(hnp.arrays(np.bool_, count))
    same[:2] = [True, False]
    return distance, same


def accuracy(distance: Floats, same: Bools, threshold: float) -> float:
    return float(np.mean((distance <= threshold) == same))


@given(scored_pairs())
@settings(max_examples=150, deadline=None)
def test_best_threshold_is_as_good_as_brute_force(pairs: tuple[Floats, Bools]) -> None:
    distance, same = pairs
    # "At most t" changes only at the distances themselves, so these are all the thresholds there are.
    every = [distance.min() - 1, *distance.tolist()]
    best = max(accuracy(distance, same, threshold) for threshold in every)
    assert accuracy(distance, same, best_threshold(distance, same)) == best


def test_best_threshold_lies_between_neighbouring_floats() -> None:
    for low in (1.0, np.nextafter(1.0, 2), np.nextafter(1.0, 0)):
        distance = np.array([low, np.nextafter(low, 2)])
        same = np.array([True, False])
        assert accuracy(distance, same, best_threshold(distance, same)) == 1.0


@given(scored_pairs())
@settings(max_examples=150, deadline=None)
def test_roc_and_auc_agree_with_scikit_learn(pairs: tuple[Floats, Bools]) -> None:
    distance, same = pairs
    ours = roc(distance, same)
    far, tar, thresholds = roc_curve(same, -distance, drop_intermediate=False)
    np.testing.assert_allclose(ours.far, far)
    np.testing.assert_allclose(ours.tar, tar)
    np.testing.assert_allclose(ours.thresholds[1:], -thresholds[1:])
    assert ours.auc == pytest.approx(roc_auc_score(same, -distance))


@given(scored_pairs())
@settings(max_examples=60, deadline=None)
def test_corners_draw_the_same_curve(pairs: tuple[Floats, Bools]) -> None:
    curve = roc(*pairs)
    fewer = curve.corners()
    assert len(fewer.far) <= len(curve.far)
    assert fewer.auc == pytest.approx(curve.auc)
    assert fewer.eer == pytest.approx(curve.eer)
    assert fewer.tar_at(1e-3) == curve.tar_at(1e-3)


@given(scored_pairs())
@settings(max_examples=150, deadline=None)
def test_equal_error_rate_lies_on_the_curve(pairs: tuple[Floats, Bools]) -> None:
    curve = roc(*pairs)
    eer = curve.eer
    assert 0 <= eer <= 1
    # Where the curve climbs at this FAR, 1 − EER lies within its climb.
    at = np.isclose(curve.far, eer)
    low, high = np.interp(eer, curve.far, curve.tar), curve.tar[at].max() if at.any() else None
    assert 1 - eer == pytest.approx(low) or (high is not None and 1 - eer <= high + 1e-12)


def test_equal_error_rate_of_a_known_curve() -> None:
    straight = Roc(np.arange(3.0), far=np.array([0.0, 0.5, 1.0]), tar=np.array([0.0, 0.75, 1.0]))
    assert straight.eer == pytest.approx(0.4)  # where 1.5 far = 1 − far
    perfect = roc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([True, True, False, False]))
    assert perfect.eer == 0.0


@given(scored_pairs(), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_tar_at_far_is_the_best_threshold_within_it(pairs: tuple[Floats, Bools], far: float) -> None:
    distance, same = pairs
    best = max(
        float(np.mean(distance[same] <= t))
        for t in [distance.min() - 1, *distance.tolist()]
        if np.mean(distance[~same] <= t) <= far
    )
    assert roc(distance, same).tar_at(far) == pytest.approx(best)


def test_tar_with_few_negatives_is_tar_at_no_false_accept() -> None:
    distance = np.array([0.1, 0.2, 0.5, 0.3, 0.6, 0.7])
    same = np.array([True, True, True, False, False, False])
    assert roc(distance, same).tar_at(1e-3) == pytest.approx(2 / 3)


@given(scored_pairs(), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_each_fold_is_judged_at_the_other_folds_threshold(pairs: tuple[Floats, Bools], count: int) -> None:
    distance, same = np.tile(pairs[0], 2), np.tile(pairs[1], 2)
    folds = np.arange(len(same)) % count
    result = verify_pairs(distance, same, folds)
    for fold in np.unique(folds):
        mine = folds == fold
        threshold = best_threshold(distance[~mine], same[~mine])
        assert result.fold_accuracies[fold] == accuracy(distance[mine], same[mine], threshold)
    spread = np.sqrt(np.sum((result.fold_accuracies - result.accuracy) ** 2) / (count - 1) / count)
    assert result.standard_error == pytest.approx(spread, abs=1e-12)


def test_a_folds_own_pairs_do_not_move_its_threshold() -> None:
    distance = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7])
    same = np.array([True, False, True, False, True, False])
    folds = np.array([0, 0, 1, 1, 2, 2])
    before = verify_pairs(distance, same, folds).fold_thresholds[0]
    distance[:2] = [5.0, 0.0]
    assert verify_pairs(distance, same, folds).fold_thresholds[0] == before


@given(hnp.arrays(np.float64, (7, 2, 5), elements=st.floats(-3, 3)))
@settings(max_examples=60, deadline=None)
def test_cosine_is_half_the_squared_euclidean_distance(raw: Floats) -> None:
    vectors = raw + 4.0
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    euclidean = distances(vectors[:, 0], vectors[:, 1])
    cosine = distances(vectors[:, 0], vectors[:, 1], "cosine")
    np.testing.assert_allclose(cosine, euclidean**2 / 2, atol=1e-12)


@pytest.mark.parametrize(
    ("distance", "same", "folds", "words"),
    [
        ([0.1, np.nan], [True, False], [0, 1], "not finite"),
        ([0.1, 0.2], [True, True], [0, 1], "both same and different"),
        ([0.1, 0.2], [True, False], [0, 0], "two folds"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    distance: list[float], same: list[bool], folds: list[int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        verify_pairs(np.array(distance), np.array(same), np.array(folds))
