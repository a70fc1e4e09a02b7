"""Watch rules that detect a generator of sparring faces that is dead or winning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparface.config import StatePolicy, number
from sparface.recipes.base import Rule


@dataclass
class GeneratorWatchConfig:
    """When the generator counts as dead or as winning, and what to do then (see `watch`)."""

    dead: StatePolicy = "log"
    """Policy for a dead generator: its mask is dead or saturated, its perturbation has vanished, or its
    sparring faces hardly move the embeddings."""
    mask_low: float = number(0.005)
    mask_high: float = number(0.995)
    perturbation_low: float = number(1e-4)
    """A perturbation has vanished if its mean change per pixel, in [0, 1] face units, is below this."""
    places_low: float = number(0.03)
    """An occluder always covers the same place if the spread of its places is below this (1: all places are
    covered equally often)."""
    shift_low: float = number(0.05)
    """The generator is dead if sparring faces move embeddings by less than this share of the mean distance
    between faces. Where they replace real faces: if they are less than this further from real faces of the
    same person than these are from each other (needs two real faces in each group)."""
    wins: StatePolicy = "log"
    """Policy for a winning generator: sparring faces move embeddings by more than `shift_high`."""
    shift_high: float = number(1.2)
    """Mean cosine distance between sparring faces and their sources, or, where sparring faces replace real
    ones, real faces of the same person."""


def generator_rules(watch: GeneratorWatchConfig, added: bool, paired: bool) -> list[Rule]:
    """Return the watch rules for the makers of sparring faces, which are `added` to the real faces, or
    replace some of them. Only added ones can be compared with their sources. `paired` is as in `success`."""
    if added:
        return [*_changes(watch), *_shifts(watch)]
    excess = [_dead(watch, "excess", " (unrecognized {unrecognized:.2g})")] if paired else []
    return [*_changes(watch), _distance(watch), *excess]


def _changes(watch: GeneratorWatchConfig) -> list[Rule]:
    dead = watch.dead
    return [
        Rule(
            "dead_mask",
            "mask_mean",
            dead,
            "dead mask: mean {value:.4g} is under {bound:g}",
            below=watch.mask_low,
        ),
        Rule(
            "saturated_mask",
            "mask_mean",
            dead,
            "saturated mask: mean {value:.4g} is over {bound:g}",
            above=watch.mask_high,
        ),
        Rule(
            "vanished_perturbation",
            "perturbation_mean",
            dead,
            "vanished perturbation: mean {value:.3g} is under {bound:g}",
            below=watch.perturbation_low,
        ),
        Rule(
            "one_place",
            "places",
            dead,
            "only one place is covered: the spread of places is {value:.3g}, under {bound:g}",
            below=watch.places_low,
        ),
    ]


def _shifts(watch: GeneratorWatchConfig) -> list[Rule]:
    return [
        _dead(watch, "shift", " (fooled {fooled:.2g})"),
        Rule(
            "generator_wins",
            "shift",
            watch.wins,
            "generator wins: shift {value:.4g} is over {bound:g}",
            above=watch.shift_high,
        ),
    ]


def _dead(watch: GeneratorWatchConfig, metric: str, more: str) -> Rule:
    def least(means: Mapping[str, float]) -> float:
        return watch.shift_low * (1 - means.get("embedding_cosine", math.nan))

    share = f"{watch.shift_low:g} of the mean distance between faces"
    text = f"dead generator: {metric} {{value:.3g}} is under {{bound:.3g}}, {share}{more}"
    return Rule("dead_generator", metric, watch.dead, text, below=least)


def _distance(watch: GeneratorWatchConfig) -> Rule:
    return Rule(
        "generator_wins",
        "distance",
        watch.wins,
        "generator wins: distance {value:.4g} is over {bound:g} (unrecognized {unrecognized:.2g})",
        above=watch.shift_high,
    )
