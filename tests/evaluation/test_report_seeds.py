"""Runs that differ only in their seed, in the report."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from evaluation_runs import write_run

from sparface.report.compare import Report, compare
from sparface.report.read import read_runs


def test_seeds_of_one_experiment_are_summed_up(tmp_path: Path) -> None:
    """Mean and standard deviation over the runs that differ in their seed only; no group of one."""
    folders = [
        write_run(tmp_path / f"{recipe}-{seed}", recipe, points=30, seed=seed)  # type: ignore[arg-type]
        for recipe, seeds in (("recognizer", (1, 2, 3)), ("sparring", (4,)))
        for seed in seeds
    ]
    report = Report(read_runs(folders))
    (group,) = report.groups
    assert [run.name for run in group.runs] == ["recognizer-1", "recognizer-2", "recognizer-3"]
    row = next(row for row in group.rows(report.evaluations) if row.on == "pairsDevTest")
    found = [json.loads(next((f / "evaluations").iterdir()).read_text()) for f in folders[:3]]
    accuracies = [document["figures"]["accuracy"] for document in found]
    assert row.mean == pytest.approx(statistics.mean(accuracies))
    assert row.spread == pytest.approx(statistics.stdev(accuracies))
    compare(folders, tmp_path / "report.html")
    assert f"{100 * row.mean:.2f} % ± {100 * row.spread:.2f} %" in (tmp_path / "report.html").read_text()


def test_groups_of_seeds_are_told_apart_by_their_names(tmp_path: Path) -> None:
    """Each name has the settings that tell its group from the others, and no more."""
    folders = [
        write_run(tmp_path / f"{recipe}-{share}-{seed}", recipe, points=2, seed=seed, mix=mix)  # type: ignore[arg-type]
        for recipe, share, mix in (
            ("recognizer", 0, None),
            ("recognizer", 2, {"made": 2}),
            ("sparring", 2, {"made": 2}),
        )
        for seed in (1, 2)
    ]
    names = [group.name for group in Report(read_runs(folders)).groups]
    assert len(names) == len({*names}) == 3
    assert all(name.count(": ") == 2 and name.startswith("recipe: ") for name in names)
