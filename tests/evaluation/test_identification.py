"""Identification figures against loops over probes and people, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from sparface.evaluation.identification import det, draw, match, statistics

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
PEOPLE = 12


def faces(seed: int, coarse: bool = False) -> tuple[Floats, Ints, Floats, Ints]:
    """A gallery of people 0–8 with one to three images each, and probes of people 0–11."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(PEOPLE, 6))
    owner = np.concatenate([np.arange(9), rng.integers(0, 9, 8)])
    probes = rng.integers(0, PEOPLE, 40)
    probes[:2] = [0, 11]
    gallery, probe = (directions[who] + rng.normal(size=(len(who), 6)) for who in (owner, probes))
    if coarse:  # many equal scores
        gallery, probe = np.sign(gallery), np.sign(probe)
    return gallery, owner, probe, probes


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def scores_by_loops(gallery: Floats, owner: Ints, probe: Floats, template: str) -> list[list[float]]:
    found = []
    for face in probe:
        row = []
        for person in range(9):
            own = gallery[owner == person]
            if template == "nearest":
                row.append(max(cosine(face, image) for image in own))
            else:
                lengths = np.linalg.norm(own, axis=1, keepdims=True)
                row.append(cosine(face, (own / lengths).mean(0)))
        found.append(row)
    return found


@given(st.integers(0, 10_000), st.sampled_from(["nearest", "mean"]))
@settings(max_examples=25, deadline=None)
def test_figures_agree_with_loops(seed: int, template: str) -> None:
    gallery, owner, probe, probes = faces(seed)
    found = match(gallery, owner, probe, probes, template)  # type: ignore[arg-type]
    expected = np.array(scores_by_loops(gallery, owner, probe, template))
    np.testing.assert_allclose(found.scores, expected, atol=1e-12)
    ones = np.ones((1, PEOPLE))
    figures = {name: one(ones)[0] for name, one in statistics(found, PEOPLE).items()}
    mated = [(row, who) for row, who in zip(expected, probes, strict=True) if who < 9]
    for rank in (1, 5):
        hits = [list(np.argsort(-row)[:rank]).count(who) for row, who in mated]
        assert figures[f"rank_{rank}"] == pytest.approx(np.mean(hits))
    same = probes[:, None] == np.arange(9)
    far, tar, _ = roc_curve(same.ravel(), expected.ravel(), drop_intermediate=False)
    assert figures["tar_at_far_0.001"] == pytest.approx(tar[far <= 0.001].max())
    strangers = [row.max() for row, who in zip(expected, probes, strict=True) if who >= 9]
    for fpir in (0.01, 0.1):
        rates = []
        for threshold in [*strangers, -np.inf]:
            if np.mean([score > threshold for score in strangers]) <= fpir:
                rates.append(np.mean([row.argmax() == who and row[who] > threshold for row, who in mated]))
        assert figures[f"tpir_at_fpir_{fpir}"] == pytest.approx(max(rates))


def test_the_det_curve_has_a_point_for_every_threshold() -> None:
    gallery, owner, probe, probes = faces(3)
    found = match(gallery, owner, probe, probes, "nearest")
    curve = det(found)
    mated, best = probes < 9, found.scores.max(1)
    for threshold in np.unique(best):
        fpir = np.mean(best[~mated] >= threshold)
        fnir = 1 - np.mean((found.scores.argmax(1) == probes)[mated] & (best >= threshold)[mated])
        distance = np.abs(np.array(curve["fpir"]) - fpir) + np.abs(np.array(curve["fnir"]) - fnir)
        assert distance.min() < 1e-12
    assert (curve["fpir"][0], curve["fnir"][0], curve["fpir"][-1]) == (0.0, 1.0, 1.0)


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_tie_with_another_person_is_an_error(seed: int) -> None:
    gallery, owner, probe, probes = faces(seed, coarse=True)
    found = match(gallery, owner, probe, probes, "nearest")
    hits = []
    for row, who in zip(found.scores, probes, strict=True):
        if who < 9:
            hits.append(all(row[other] < row[who] for other in range(9) if other != who))
    assert statistics(found, PEOPLE)["rank_1"](np.ones((1, PEOPLE)))[0] == pytest.approx(np.mean(hits))
    blind = match(np.ones((9, 6)), np.arange(9), probe, probes, "nearest")
    figures = statistics(blind, PEOPLE)
    assert all(one(np.ones((1, PEOPLE)))[0] == 0 for one in figures.values()), "one embedding for everybody"


def test_figures_that_have_no_probes_are_left_out() -> None:
    gallery, probe = np.eye(3), np.eye(3)
    assert statistics(match(gallery, np.arange(3), probe, np.array([5, 5, 5]), "mean"), 6) == {}
    alone = statistics(match(gallery[:1], np.array([2]), probe, np.array([2, 2, 2]), "mean"), 6)
    assert set(alone) == {"rank_1"}, "nobody else to be taken for"
    with pytest.raises(ValueError, match="at least one image"):
        match(gallery[:0], np.zeros(0, np.int64), probe, np.arange(3), "mean")


def test_drawn_galleries_are_nested_and_their_probes_are_the_rest() -> None:
    identity = np.repeat([0, 1, 2, 3], [5, 3, 1, 4])
    draws = draw(identity, np.arange(13), 3, seed=0, hold_out=True, unenrolled=[3])
    for number, one in enumerate(draws, 1):
        counts = np.bincount(identity[one.enrolled], minlength=4)
        assert counts.tolist() == [min(number, 3), min(number, 2), 1, 0]
        np.testing.assert_array_equal(one.probes, draws[-1].probes)
    assert set(draws[0].enrolled) < set(draws[1].enrolled) < set(draws[2].enrolled)
    assert not set(draws[2].enrolled) & set(draws[2].probes)
    assert len(draws[2].enrolled) + len(draws[2].probes) == 13
    (whole,) = draw(identity, np.arange(13), 1, seed=0, hold_out=False)
    assert len(whole.enrolled) == 4 and not len(whole.probes)
    assert len(draw(identity, np.arange(13), 5, seed=0, hold_out=False)[-1].enrolled) == 13
