"""Runs that differ only in their seed, and their figures together."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparface.report.formats import setting
from sparface.report.read import Run

OWN_OF_A_SEED = ("training.seed", "tracking.run_name")
"""Settings that differ between repetitions of one experiment."""


@dataclass(frozen=True)
class Row:
    """An accuracy of several runs."""

    on: str
    """The evaluation."""
    values: Sequence[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation between the runs."""
        return statistics.stdev(self.values)


@dataclass(frozen=True)
class Group:
    """Two or more runs that differ only in their seed."""

    name: str
    runs: Sequence[Run]

    def rows(self, evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Row]:
        """The group's accuracy on each of the evaluations (name → run → result) that several of its runs
        have, and during training."""
        found = {
            name: [results[run.name]["figures"]["accuracy"] for run in self.runs if run.name in results]
            for name, results in evaluations.items()
        }
        last = [run.last("validation/accuracy") for run in self.runs]
        found["validation set, during training"] = [value for value in last if value is not None]
        return [Row(name, values) for name, values in found.items() if len(values) > 1]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Find the groups among runs; each is named by settings that tell them apart."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        key = str(sorted((k, str(v)) for k, v in run.config.items() if k not in OWN_OF_A_SEED))
        alike.setdefault(key, []).append(run)
    found = [members for members in alike.values() if len(members) > 1]
    telling = _telling([members[0].config for members in found])
    return [Group(_name(members[0].config, telling), members) for members in found]


def _name(config: Mapping[str, Any], telling: Sequence[str]) -> str:
    name = ", ".join(f"{key}: {setting(config.get(key))}" for key in telling)
    return name or str(config.get("recipe", "runs"))


def _telling(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings that tell configs apart: each one does so for some that those before it do not."""
    chosen: list[str] = []
    apart = [""] * len(configs)
    for key in dict.fromkeys(key for config in configs for key in config):
        further = [f"{known}\n{config.get(key)}" for known, config in zip(apart, configs, strict=True)]
        if key not in OWN_OF_A_SEED and len({*further}) > len({*apart}):
            chosen, apart = [*chosen, key], further
    return chosen
