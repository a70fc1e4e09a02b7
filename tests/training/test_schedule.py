"""The learning rate over a run, by its formula."""

from __future__ import annotations

import numpy as np
import pytest

from sparface.config import ScheduleConfig
from sparface.training.schedule import rate_factor, total_images

FALLING = {
    "constant": lambda done: np.ones_like(done),
    "linear": lambda done: 1 - 0.99 * done,
    "cosine": lambda done: 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * done)),
}


def factors(config: ScheduleConfig, images: np.ndarray, total: int) -> np.ndarray:
    return np.array([rate_factor(config, int(seen), total) for seen in images])


@pytest.mark.parametrize("decay", FALLING)
@pytest.mark.parametrize("warmup", [0, 1, 250])
def test_the_rate_rises_linearly_and_falls_as_named(decay: str, warmup: int) -> None:
    config = ScheduleConfig(images=1000, warmup_images=warmup, decay=decay)  # type: ignore[arg-type]
    images = np.arange(1001)
    rising = (images + 1) / (warmup + 1)
    falling = FALLING[decay]((images - warmup) / (1000 - warmup))
    expected = np.where(images < warmup, rising, falling)
    np.testing.assert_allclose(factors(config, images, 1000), expected, rtol=1e-12)


@pytest.mark.parametrize(("decay", "quarter"), [("linear", 0.7525), ("cosine", 0.8550178566873410)])
def test_known_points_of_a_decay(decay: str, quarter: float) -> None:
    config = ScheduleConfig(images=800, decay=decay)  # type: ignore[arg-type]
    expected = [1, quarter, 0.505, 0.01]
    assert factors(config, np.array([0, 200, 400, 800]), 800).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_stays_at_its_end_beyond_the_schedule(decay: str) -> None:
    """The last update may take more images than are left."""
    config = ScheduleConfig(images=100, decay=decay)  # type: ignore[arg-type]
    assert rate_factor(config, 140, 100) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("decay", FALLING)
def test_a_warmup_as_long_as_the_run_never_divides_by_zero(decay: str) -> None:
    config = ScheduleConfig(images=10, warmup_images=10, decay=decay)  # type: ignore[arg-type]
    assert rate_factor(config, 9, 10) == pytest.approx(10 / 11)
    assert rate_factor(config, 10, 10) == 1


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_decay_of_one_image(decay: str) -> None:
    config = ScheduleConfig(images=10, warmup_images=9, decay=decay)  # type: ignore[arg-type]
    assert rate_factor(config, 9, 10) == 1
    assert rate_factor(config, 10, 10) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("images", "epochs", "total"),
    [(500, 0.0, 500), (500, 3.0, 500), (0, 3.0, 216), (0, 0.5, 36), (0, 0.51, 37), (0, 1e-9, 1)],
)
def test_length_in_images_or_in_passes_over_72(images: int, epochs: float, total: int) -> None:
    assert total_images(ScheduleConfig(images=images, epochs=epochs), 72) == total
