"""The geometry: known transforms are recovered, and warping puts pixels where it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from sparface.faces.templates import ARCFACE_112, arcface_template, similarity, square_transform, warp


def transform(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y]])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


transforms = st.builds(
    transform,
    st.floats(-np.pi, np.pi),
    st.floats(0.05, 20),
    st.floats(-500, 500),
    st.floats(-500, 500),
)


@given(transforms)
def test_umeyama_recovers_any_similarity(known: np.ndarray) -> None:
    found = similarity(ARCFACE_112, apply(known, ARCFACE_112))
    assert np.allclose(found, known, atol=1e-7 * max(1, np.abs(known).max()))


@given(transforms, st.integers(0, 2**32 - 1))
def test_umeyama_is_the_least_squares_optimum(known: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = apply(known, ARCFACE_112) + rng.normal(0, 3, (5, 2))
    found = similarity(ARCFACE_112, target)
    best = ((apply(found, ARCFACE_112) - target) ** 2).sum()
    for _ in range(8):
        near = found + rng.normal(0, 1e-3, (1, 1)) * transform(rng.uniform(0, 6), 1, 0, 0)
        assert ((apply(near, ARCFACE_112) - target) ** 2).sum() >= best - 1e-9


def test_umeyama_never_mirrors() -> None:
    mirrored = ARCFACE_112 * (-1, 1)
    assert np.linalg.det(similarity(ARCFACE_112, mirrored)[:, :2]) > 0


def test_one_point_has_no_similarity() -> None:
    with pytest.raises(ValueError, match="coincide"):
        similarity(np.zeros((5, 2)), ARCFACE_112)


def test_the_template_scales_with_the_pixel_grid() -> None:
    assert np.allclose(arcface_template(112), ARCFACE_112)
    assert np.allclose((arcface_template(224) + 0.5) / 2, ARCFACE_112 + 0.5)


def blobs(points: np.ndarray, side: int, spread: float) -> np.ndarray:
    """A dark photo with a bright blob at each point, uint8 [side, side, 3]."""
    columns, rows = np.exp(-((np.arange(side) - points.T[..., None]) ** 2) / (2 * spread**2))
    bright = np.einsum("py,px->yx", rows, columns).clip(0, 1)
    return np.repeat((bright * 255).astype(np.uint8)[..., None], 3, -1)


def centre_of(image: np.ndarray, near: np.ndarray, reach: int) -> np.ndarray:
    y, x = np.mgrid[: len(image), : len(image)]
    weight = image[..., 0] * (np.hypot(x - near[0], y - near[1]) < reach).astype(float)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@settings(deadline=None, max_examples=25)
@given(st.floats(-0.6, 0.6), st.floats(0.5, 6), st.sampled_from([64, 112, 128]))
def test_landmarks_land_on_the_template_at_any_scale(angle: float, scale: float, size: int) -> None:
    target = arcface_template(size)
    placed = apply(transform(angle, scale, 0, 0), target)
    points = placed - placed.mean(0) + 400
    face = warp(blobs(points, 800, 2.0 * scale * size / 112), similarity(points, target), size)
    for expected in target:
        assert np.abs(centre_of(face, expected, round(7 * size / 112)) - expected).max() < 0.2


def test_the_identity_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(warp(image, np.eye(2, 3), 64), image)


@pytest.mark.parametrize("scale", [1.5, 2.5, 4.0, 7.3])
def test_shrinking_does_not_alias(scale: float) -> None:
    """A fine checkerboard becomes even grey."""
    side = int(64 * scale)
    fine = ((np.indices((side, side)).sum(0) % 2) * 255).astype(np.uint8)
    centre = (side - 1) / 2
    face = warp(np.repeat(fine[..., None], 3, -1), square_transform((centre, centre), side * 0.8, 64), 64)
    assert face[8:-8, 8:-8].std() < 30  # sampling without an average gives up to 127


def test_shrinking_agrees_with_pils_own_resize() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (300, 300, 3), np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(6))
    ours = warp(np.asarray(image), square_transform((149.5, 149.5), 300, 100), 100)
    theirs = np.asarray(image.resize((100, 100), Image.Resampling.BOX))
    assert np.abs(ours.astype(int) - theirs)[2:-2, 2:-2].max() <= 3


@pytest.mark.parametrize("shrink", [1.05, 1.3, 1.6, 1.95, 2.6])
def test_shrinking_is_near_the_average_under_each_pixel(shrink: float) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (300, 300, 3), np.uint8)
    image = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)))
    size, parts = round(200 / shrink), 16
    onto = transform(0.2, 1 / shrink, 0, 0)
    onto[:, 2] = (size - 1) / 2 - apply(onto, np.array([149.5, 149.5]))
    places = (np.indices((size * parts, size * parts)).reshape(2, -1).T[:, ::-1] + 0.5) / parts - 0.5
    columns, rows = np.rint((places - onto[:, 2]) @ np.linalg.inv(onto[:, :2]).T).astype(int).T
    average = image[rows, columns].reshape(size, parts, size, parts, 3).mean((1, 3))
    error = warp(image, onto, size) - average
    assert np.sqrt((error**2).mean()) < 0.06 * image.std()


def test_outside_the_photo_its_border_goes_on() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 200
    face = warp(image, square_transform((19.5, 19.5), 160, 64), 64)
    assert face[:, 0].max() == 0 and face[:, -1].min() == 200
