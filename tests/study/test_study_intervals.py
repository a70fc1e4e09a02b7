"""Intervals against scipy and simulation, and verdicts on both sides of a claim."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sparface.study.claims import verdict
from sparface.study.file import Claim
from sparface.study.intervals import Estimate, Measured, difference, estimate


def test_over_seeds_it_is_students_t() -> None:
    values = [0.81, 0.79, 0.83, 0.80]
    found = estimate([Measured(value) for value in values])
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert np.allclose((found.low, found.high), (low, high)) and found.seeds == 4 and not found.identities
    assert found.mean == pytest.approx(np.mean(values)) and found.spread == pytest.approx(stats.tstd(values))


def test_one_value_has_no_interval_and_one_seed_with_a_bootstrap_has_that_of_the_people() -> None:
    alone = estimate([Measured(0.8)])
    assert alone.low == -math.inf and alone.high == math.inf and math.isnan(alone.spread)
    replicates = np.random.default_rng(0).normal(0.8, 0.02, 4000)
    found = estimate([Measured(0.8, replicates, "p")])
    assert found.identities and np.allclose(
        [found.low, found.high], 0.8 + 1.96 * 0.02 * np.array([-1, 1]), atol=2e-3
    )


def test_the_interval_covers_the_truth_when_seeds_and_people_vary() -> None:
    """Simulated: 3 seeds share their people; both vary. 95 % of the intervals contain the truth."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        people = rng.normal(0, 0.02)
        seeds = rng.normal(0, 0.02, 3)
        values = [
            Measured(0.8 + people + seed, 0.8 + people + seed + shared, "p")
            for shared in [rng.normal(0, 0.02, 200)]
            for seed in seeds
        ]
        found = estimate(values)
        covered += found.low <= 0.8 <= found.high
    assert 0.92 < covered / 400 < 0.995


def test_paired_differences_drop_what_both_share() -> None:
    rng = np.random.default_rng(2)
    people, seeds = rng.normal(0, 0.1, 500), {0: 0.1, 1: -0.1, 2: 0.05}
    first = {seed: Measured(0.9 + shift, 0.9 + shift + people, "p") for seed, shift in seeds.items()}
    second = {seed: Measured(0.8 + shift, 0.8 + shift + people, "p") for seed, shift in seeds.items()}
    found = difference(first, second)
    assert found is not None and np.allclose([found.low, found.mean, found.high], 0.1)
    others = {seed: Measured(one.value, one.replicates, "q") for seed, one in second.items()}
    unpaired = difference(first, others)
    assert unpaired is not None and not unpaired.identities
    assert difference(first, {7: Measured(0.5)}) is None


class Given:
    """Results with one estimate."""

    experiment: Any = SimpleNamespace(on={"": ""})
    main_set = ""

    def __init__(self, found: Estimate | None) -> None:
        self.found = found

    def gain(self, *_: object, than_metric: str) -> Estimate | None:
        return self.found

    def at(self, *_: object) -> Estimate | None:
        return self.found

    def mean(self, *_: object) -> Estimate | None:
        return self.found

    def missing(self, *_: object) -> list[str]:
        return []


@pytest.mark.parametrize(
    ("low", "high", "beats", "reaches", "fewer"),
    [
        (0.04, 0.06, "reproduced", "reproduced", "not reproduced"),
        (0.01, 0.02, "not reproduced", "not reproduced", "reproduced"),
        (0.02, 0.04, "undecided", "undecided", "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(
    low: float, high: float, beats: str, reaches: str, fewer: str
) -> None:
    given: Any = Given(Estimate((low + high) / 2, low, high, 0.01, 3, False))
    assert verdict(Claim("x", "lfw.accuracy", "a", "b", by=0.03), given).outcome == beats
    assert verdict(Claim("x", "lfw.accuracy", "a", by=0.03), given).outcome == reaches
    assert verdict(Claim("x", "lfw.eer", "a", by=0.03), given).outcome == fewer


def test_what_cannot_be_judged_is_said() -> None:
    one: Any = Given(Estimate(0.5, 0.4, 0.6, math.nan, 1, True))
    none: Any = Given(None)
    assert verdict(Claim("x", "lfw.accuracy", "a", "b"), one).outcome == "undecided"
    assert verdict(Claim("x", "lfw.accuracy", "a", "b"), none).outcome == "not measured yet"
    found = verdict(Claim("x", why_not="no such data"), none)
    assert found.outcome == "not testable here" and found.because == "no such data"
