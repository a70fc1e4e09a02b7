"""Thresholds against the share of strangers that they let through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sparface.errors import UserError
from sparface.evaluation.embed import embed
from sparface.evaluation.recognizers import open_recognizer
from sparface.faces.aligner import Aligner, Alignment
from sparface.faces.photos import open_photo
from sparface.gallery.threshold import estimated, measured

Floats = npt.NDArray[np.float64]


def sphere(seed: int, count: int, size: int = 64) -> Floats:
    rows = np.random.default_rng(seed).normal(size=(count, size))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("fpir", [0.01, 0.1])
def test_the_measured_threshold_lets_as_many_strangers_through(fpir: float) -> None:
    gallery, others = sphere(0, 40), sphere(1, 5000)
    found = measured(gallery, np.repeat(np.arange(20), 2), others, np.arange(5000), 5000, fpir)
    best = np.sort((others @ gallery.T).max(1))[::-1]
    assert found.value == pytest.approx(best[round(5000 * fpir)], abs=1e-12), (
        "the best score of the first who must be rejected"
    )
    assert "5,000 other people" in found.basis
    unseen = (sphere(2, 20_000) @ gallery.T).max(1)
    assert np.mean(unseen > found.value) == pytest.approx(fpir, rel=0.5)


def test_with_too_few_strangers_none_is_let_through() -> None:
    found = measured(sphere(0, 4), np.arange(4), sphere(1, 10), np.arange(10), 10, 0.01)
    assert found.value == (sphere(1, 10) @ sphere(0, 4).T).max()


@pytest.mark.parametrize(("people", "galleries"), [(5, 300), (15, 150), (60, 30)])
def test_the_estimated_threshold_lets_as_many_strangers_through(people: int, galleries: int) -> None:
    """On average over galleries, also of few people; cosines of 512 dimensions are nearly normal."""
    others = sphere(0, 1500, 512)
    found = [sphere(1 + number, people, 512) for number in range(galleries)]
    limits = [estimated(gallery, np.arange(people), 0.01) for gallery in found]
    pairs = zip(found, limits, strict=True)
    shares = [np.mean((others @ gallery.T).max(1) > limit.value) for gallery, limit in pairs]
    assert 0.006 < np.mean(shares) < 0.014
    assert f"{people * (people - 1) // 2:,} pairs" in limits[0].basis


def test_few_people_of_real_photos_are_told_from_strangers(data: Path) -> None:
    """Five people of the ORL database with one photo each: of the other 35, hardly anybody is named."""
    faces, person = embedded(data, 4)
    shares, named = [], []
    for seed in range(100):
        enrolled = np.random.default_rng(seed).permutation(40)[:5]
        first = np.array([np.flatnonzero(person == one)[0] for one in enrolled])
        limit = estimated(faces[first], np.arange(5), 0.01).value
        best = (faces @ faces[first].T).max(1)
        ours = np.isin(person, enrolled)
        shares.append(np.mean(best[~ours] > limit))
        ours[first] = False
        named.append(np.mean(best[ours] > limit))
    assert np.mean(shares) < 0.01 and np.mean(named) > 0.9


def embedded(data: Path, photos: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Embeddings of the first photos of each person, of length 1, and whose they are."""
    opened = open_recognizer(data / "pretrained/mobilefacenet.onnx")
    aligner = Aligner(Alignment(112, "arcface", True))
    files = [
        file for folder in sorted((data / "orl").iterdir()) for file in sorted(folder.iterdir())[:photos]
    ]
    images = {number: aligner.align_every(open_photo(file))[0][0] for number, file in enumerate(files)}
    rows = np.stack([*embed(opened.network, images.items()).values()]).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), np.arange(len(files)) // photos


def test_several_photos_of_a_person_are_several_chances() -> None:
    """A stranger is compared with the nearest of them."""
    others, shares = sphere(0, 1500, 512), []
    for number in range(100):
        gallery, person = sphere(1 + number, 40, 512), np.repeat(np.arange(10), 4)
        limit = estimated(gallery, person, 0.01).value
        shares.append(np.mean((others @ gallery.T).max(1) > limit))
    assert 0.005 < np.mean(shares) < 0.025


def test_photos_of_one_person_are_not_compared() -> None:
    gallery = sphere(0, 6)
    twice = estimated(np.repeat(gallery, 2, axis=0), np.repeat(np.arange(6), 2), 0.01)
    assert twice.value == pytest.approx(estimated(gallery, np.arange(6), 0.01).value)


def test_few_people_say_nothing() -> None:
    with pytest.raises(UserError, match=r"4 people are too few .* --calibrate"):
        estimated(sphere(0, 4), np.arange(4), 0.01)
