"""The outcome of a study for people and programs: its form, and what it says while parts are missing."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_files import small_study, started, write_study

from made_studies import finish
from sparface import cli
from sparface.study import page, pictures
from sparface.study.folder import StudyFolder
from sparface.study.plan import Part
from sparface.study.results import Results

ROOT = Path(__file__).parents[2]
GAINS = ("gain_over_recognizer", "gain_over_classic", "gain_over_random_control")
BASES = {"drawn-mix": 0.8, "occlusion": 0.75, "classic": 0.7, "alone": 0.6, "as-it-is": 0.5}
"""Accuracy of an arm, before what its seed adds; 0.65 for others."""


def accuracy(part: Part) -> float:
    assert part.cell
    return BASES.get(part.cell.arm, 0.65) + 0.01 * part.cell.seed * (part.cell.arm != "alone")


def measured(part: Part) -> dict[str, Any]:
    names = ("accuracy", "auc", "sunglasses-2/tar_at_far_0.001")
    return {"figures": dict.fromkeys(names, accuracy(part) + 0.1 * (part.evaluation == "ar-worn"))}


def report(study: StudyFolder) -> dict[str, Any]:
    page.write_report(study)
    return dict(json.loads((study.path / page.EVIDENCE).read_text()))


def few(folder: Path) -> StudyFolder:
    data = [f"{name}=/data/{name}" for name in ("celeba", "lfw", "ar", "ar-conditions", "pretrained")]
    return started(ROOT / "launch/few.yaml", folder, *data)


def test_the_evidence_of_few_faces_has_its_form(tmp_path: Path) -> None:
    """S and P: each gain with its interval, over the arms that the study file names, and their settings."""
    study = few(tmp_path / "few")
    finish(study, measured)
    found = report(study)
    assert not found["missing"] and found["parts"]["finished"] == found["parts"]["all"]
    assert found["command"].startswith("sparface study few.yaml --data celeba=CELEBA")
    for name, metric in (("S", "lfw.accuracy"), ("P", "ar-worn.sunglasses-2/tar_at_far_0.001")):
        entry = found[name]
        assert entry.keys() == {"arm", "metric", "settings", *GAINS} and entry["metric"] == metric
        assert entry["settings"].keys() == {entry["arm"], *(entry[gain]["arm"] for gain in GAINS)}
        for gain in GAINS:
            values = entry[gain]
            assert values.keys() == {"arm", "metric", "mean", "low", "high", "seeds", "identities"}
            assert values["low"] <= values["mean"] <= values["high"] and values["seeds"] == 3
    gain = found["S"]["gain_over_recognizer"]
    seeds = np.array([0.2, 0.21, 0.22])
    assert gain["mean"] == pytest.approx(seeds.mean())
    assert gain["high"] - gain["mean"] == pytest.approx(4.302653 * seeds.std(ddof=1) / np.sqrt(3))
    # enrolled with covers, against the recognizer as it is without them
    assert found["P"]["gain_over_recognizer"]["metric"] == "ar.sunglasses-2/tar_at_far_0.001"
    assert found["P"]["gain_over_recognizer"]["mean"] == pytest.approx(0.65 + 0.01 + 0.1 - 0.5)
    settings = found["S"]["settings"]
    assert settings["alone"]["data.variation"] == "mirror" and settings["alone"]["schedule.images"] in (
        30000,
        60000,
    )
    assert found["P"]["settings"]["as-it-is"] == {"checkpoint": "{pretrained}"}
    text = (study.path / page.MARKDOWN).read_text()
    for heading in (
        "## From scratch",
        "## From a pretrained",
        "### Claims",
        "### Paired differences",
        "### Cost",
    ):
        assert heading in text
    assert "Missing parts" not in text


def unfinished(folder: Path, missing: Container[str], **more: Any) -> StudyFolder:
    """Two arms × three seeds, without some parts."""
    tree = small_study(**{"seeds": 3, **more})
    study = started(write_study(folder / "small.yaml", tree), folder / "out", "faces=f", "others=o")
    finish(study, measured, missing=missing)
    return study


LAST = "evaluate.S.varied.16.s2.others"


def test_a_gain_of_some_seeds_is_not_shown_as_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = unfinished(tmp_path, {LAST})
    found = report(study)
    assert found["missing"] == [LAST] and found["parts"] == {"finished": 11, "all": 12}
    gain = found["S"]["gain_over_recognizer"]
    assert (gain["mean"], gain["low"], gain["high"], gain["seeds"]) == (None, None, None, 0)
    assert gain["missing"] == [LAST] and gain["so_far"]["seeds"] == 2
    assert gain["so_far"]["mean"] == pytest.approx(0.0)
    html = (study.path / page.REPORT).read_text()
    for text in ((study.path / page.MARKDOWN).read_text(), html):
        assert "Missing parts" in text and "not finished" in text and "2 of 3" in text
        assert "not measured yet" in text and "so far gain +0.0 points" in text.replace("\\", "")
        assert "with 2 seeds; 1 part is missing" in text and "reproduced |" not in text
    assert LAST in html
    assert cli.main(["study", str(study.path)]) == 0
    assert "(2 of 3 seeds so far)" in capsys.readouterr().out
    finish(study, measured)
    found = report(StudyFolder.open(study.path))
    assert not found["missing"] and found["S"]["gain_over_recognizer"]["seeds"] == 3
    assert "Missing parts" not in (study.path / page.MARKDOWN).read_text()


def test_a_figure_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    study = unfinished(tmp_path, ())
    (study.path / "figures/S.varied.16.s2.others.json").write_text("{")
    gain = report(study)["S"]["gain_over_recognizer"]
    assert gain["mean"] is None and gain["missing"] == [LAST] and gain["so_far"]["seeds"] == 2
    for name in (page.REPORT, page.MARKDOWN):
        assert "Unreadable: S.varied.16.s2.others.json" in (study.path / name).read_text()


def test_what_has_failed_or_waits_is_named(tmp_path: Path) -> None:
    study = unfinished(tmp_path, {LAST})
    record = study.path / "parts/train.S.plain.16.s0.json"
    content = json.loads(record.read_text())
    content["attempts"] *= 2
    content["attempts"][-1] = content["attempts"][0] | {"code": 1}
    record.write_text(json.dumps(content))
    found = report(study)
    assert found["missing"] == ["train.S.plain.16.s0", "evaluate.S.plain.16.s0.others", LAST]
    html = (study.path / page.REPORT).read_text()
    assert "attempt 2 ended with exit code 1" in html and "needs train.S.plain.16.s0" in html
    assert found["S"]["gain_over_recognizer"]["so_far"]["seeds"] == 1


def test_a_budget_that_few_seeds_have_is_not_the_best(tmp_path: Path) -> None:
    """With 32 images the only seed so far is better, by chance perhaps."""

    def rising(part: Part) -> dict[str, Any]:
        assert part.cell
        return {"figures": {"accuracy": accuracy(part) + 0.1 * (part.cell.images == 32)}}

    missing = {f"evaluate.S.{arm}.32.s{seed}.others" for arm in ("plain", "varied") for seed in (1, 2)}
    tree = small_study(seeds=3, images=[16, 32])
    study = started(write_study(tmp_path / "small.yaml", tree), tmp_path / "out", "faces=f", "others=o")
    finish(study, rising, missing=missing)
    found = report(study)["S"]
    assert found["settings"]["varied"]["schedule.images"] == 16
    assert found["gain_over_recognizer"]["missing"] == sorted(missing)
    finish(study, rising)
    assert report(study)["S"]["settings"]["varied"]["schedule.images"] == 32


def test_a_figure_that_nothing_gives_is_said(tmp_path: Path) -> None:
    claim = {"says": "it helps", "arm": "varied", "beats": "plain", "in": "others.rank_1"}
    study = unfinished(
        tmp_path, (), claims=[claim], gains={"arm": "varied", "in": "others.rank_1", "over": {}}
    )
    report(study)
    assert "nothing that was run gives others.rank\\_1" in (study.path / page.MARKDOWN).read_text()


def test_shares_are_in_percent_and_distances_are_not(tmp_path: Path) -> None:
    """As `sparface evaluate` prints them."""
    names = ["f1_macro", "fgsm/0.01/success", "frechet"]
    evaluate = {"others": {"run": "classification --shards {others}", "show": names}}
    gains = {"arm": "varied", "in": "others.f1_macro", "over": {}}
    study = unfinished(tmp_path, (), evaluate=evaluate, claims=[], gains=gains)
    finish(study, lambda part: {"figures": dict.fromkeys(names, 0.5)})
    report(study)
    rows = (study.path / page.MARKDOWN).read_text().splitlines()
    assert any(row.count("50.0 %") == 2 and row.count("0.5000 ±") == 1 for row in rows)


def test_accuracy_under_attack_is_drawn_over_its_strength(tmp_path: Path) -> None:
    """One chart for each attack that was measured at two strengths, with the means over seeds."""

    def attacked(part: Part) -> dict[str, Any]:
        names = (
            "accuracy",
            "fgsm/0.02/accuracy",
            "fgsm/0.01/accuracy",
            "pixel/1/accuracy",
            "fgsm/0.01/dodging",
        )
        return {"figures": {name: accuracy(part) / (1 + place) for place, name in enumerate(names)}}

    study = unfinished(tmp_path, ())
    finish(study, attacked)
    results = Results(study, study.study.experiments["S"], study.done())
    (chart,) = pictures.under_attack(results)
    assert "attack fgsm (others)" in chart.caption
    places = {0.0: "others.accuracy", **pictures.strengths(results, "others")["fgsm"]}
    points = {size: rest for size, *rest in pictures.under(results, places, "varied")}
    for size, share in ((0.0, 1), (0.01, 3), (0.02, 2)):
        mean, low, high = points[size]
        assert mean == pytest.approx(0.66 / share) and low < mean < high
    page.write_report(study)
    assert chart.caption in (study.path / page.REPORT).read_text()
