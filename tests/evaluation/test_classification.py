"""Figures of classification against scikit-learn and torchmetrics, and `evaluate classification` on a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import sklearn.metrics
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from sparface import cli
from sparface.errors import UserError
from sparface.evaluation.classification import ClassValidator, classify, evaluate_classification
from sparface.evaluation.confusion import BINS, count, reliability, statistics
from sparface.evaluation.verification import evaluate_verification
from sparface.export import export
from sparface.report.compare import Report, render
from sparface.report.read import can_draw_confusion, read_runs
from sparface.runs.trained import open_run
from sparface.shards import ShardSet, ShardSetWriter

CLASSES = ("anger", "fear", "happy", "sad")
NAMES = ("precision", "recall", "f1")


def answers(faces: int = 200, people: int = 30, seed: int = 0) -> tuple[Any, Any, Any]:
    """Of a fair classifier that has never seen a sad face."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, faces)
    logits = rng.normal(0, 1, (faces, 4)) + 1.5 * np.eye(4)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, truth, rng.integers(0, people, faces)


def by_sklearn(truth: Any, answer: Any) -> dict[str, float]:
    present = sorted(set(truth.tolist()))
    scores = sklearn.metrics.precision_recall_fscore_support
    known: dict[str, Any] = {"labels": present, "zero_division": 0}
    found = {"accuracy": sklearn.metrics.accuracy_score(truth, answer)}
    for how in ("macro", "weighted"):
        found |= {
            f"{name}_{how}": value
            for name, value in zip(NAMES, scores(truth, answer, average=how, **known)[:3], strict=True)
        }
    for name, values in zip(NAMES, scores(truth, answer, **known)[:3], strict=True):
        found |= {f"{CLASSES[p]}/{name}": value for p, value in zip(present, values, strict=True)}
    return found


def test_figures_are_those_of_scikit_learn_and_torchmetrics() -> None:
    probabilities, truth, owner = answers()
    counts = count(probabilities, truth, owner, 30)
    found = {name: float(of(np.ones((1, 30)))[0]) for name, of in statistics(counts, CLASSES).items()}
    expected = by_sklearn(truth, probabilities.argmax(1))
    calibration = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(truth), num_classes=4, n_bins=BINS
    )
    assert found.pop("calibration_error") == pytest.approx(float(calibration), abs=1e-6)
    assert found == pytest.approx(expected)
    confusion = sklearn.metrics.confusion_matrix(truth, probabilities.argmax(1), labels=range(4))
    assert np.array_equal(counts.confusion, confusion)
    assert sum(reliability(counts)["faces"]) == 200


def test_many_classes_have_no_figures_of_their_own() -> None:
    probabilities, truth, owner = answers()
    many = np.pad(probabilities, ((0, 0), (0, 17)))
    counts = count(many, truth, owner, 30)
    assert not [name for name in statistics(counts, [str(number) for number in range(21)]) if "/" in name]


def test_a_person_drawn_twice_counts_like_two_people() -> None:
    probabilities, truth, owner = answers()
    drawn = np.random.default_rng(1).integers(0, 3, 30)
    drawn[5:] *= np.isin(np.arange(5, 30), owner[truth != 1])  # whatever is left of a class
    rows = np.repeat(np.arange(200), drawn[owner])
    expected = by_sklearn(truth[rows], probabilities[rows].argmax(1))
    counts = count(probabilities, truth, owner, 30)
    weights = drawn[None].astype(float)
    found = {name: float(of(weights)[0]) for name, of in statistics(counts, CLASSES).items()}
    del found["calibration_error"]
    assert {k: v for k, v in found.items() if not np.isnan(v)} == pytest.approx(expected)


@pytest.fixture(scope="module")
def run(classifier: Path) -> Path:
    return classifier


def test_a_run_is_evaluated_on_a_set(run: Path, labelled: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "figures.json"
    words = ["--checkpoint", str(run), "--shards", str(labelled), "--json", str(out)]
    assert cli.main(["evaluate", "classification", *words]) == 0
    document = json.loads(out.read_text())
    stored = run / "evaluations" / "classification-on-labelled-000000640.json"
    assert json.loads(stored.read_text()) == document
    network, names = open_run(run).network("classifier"), ["calm", "dull", "glad", "sad"]
    truth, answer = [], []
    for face in ShardSet.open(labelled).faces():
        x = torch.from_numpy(face.image).permute(2, 0, 1)[None] / 255
        truth.append(names.index(face.meta["expression"]))
        answer.append(int(network(x).argmax()))
    assert document["confusion"] == sklearn.metrics.confusion_matrix(truth, answer, labels=range(4)).tolist()
    figures = document["figures"]
    assert figures["accuracy"] == pytest.approx(np.mean(np.array(truth) == answer))
    assert {"calm/recall", "sad/f1"} < figures.keys() and "dull/recall" not in figures
    assert document["intervals"]["calibration_error"] == [None, None]
    low, high = document["intervals"]["accuracy"]
    assert low <= figures["accuracy"] <= high and document["bootstrap"]["identities"] == 12
    assert document["classes"] == names and document["label"] == "expression"
    printed = capsys.readouterr().out
    assert (
        "classification-on-labelled: accuracy" in printed and "dull      0          –       –  –" in printed
    )


def test_the_report_draws_the_confusion(run: Path, labelled: Path) -> None:
    document = evaluate_classification(run, labelled)
    report = Report(read_runs([run]))
    assert len(report.confusions) == 1 and report.confusions[0].png.startswith(b"\x89PNG")
    page = render(read_runs([run]))
    assert "classification-on-labelled by run: faces of each class (rows) by the answer (columns)" in page
    assert f"{100 * document['figures']['accuracy']:.1f} % [" in page and "has no evaluation yet" not in page


@pytest.mark.parametrize(
    "damage",
    [{"confusion": [[1]]}, {"confusion": [[-1] * 4] * 4}, {"confusion": [["1"] * 4] * 4}, {"classes": []}],
    ids=str,
)
def test_a_damaged_confusion_is_not_drawn(run: Path, labelled: Path, damage: dict[str, Any]) -> None:
    assert not can_draw_confusion(evaluate_classification(run, labelled) | damage)


def test_validation_says_the_same(run: Path, labelled: Path) -> None:
    document = evaluate_classification(run, labelled)
    validator = ClassValidator(ShardSet.open(labelled), "expression", document["classes"])
    network = open_run(run).network("classifier")
    found = validator(network)
    assert found == pytest.approx({name: document["figures"][name] for name in found})
    torch.nn.init.constant_(next(network.parameters()), torch.nan)
    assert all(np.isnan(value) for value in validator(network).values())


def test_an_exported_classifier_gives_the_same_logits(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    x = torch.rand(3, 3, 32, 32)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "classifier.onnx")
    (logits,) = session.run(["logits"], {"faces": x.numpy()})
    with torch.no_grad():
        assert np.allclose(logits, open_run(run).network("classifier")(x).numpy(), atol=1e-4)


def test_what_cannot_be_evaluated_is_named(run: Path, labelled: Path, tmp_path: Path) -> None:
    with ShardSetWriter(tmp_path / "plain", name="plain", size=(32, 32)) as writer:
        writer.add(next(ShardSet.open(labelled).faces()))
    network = open_run(run).network("classifier")
    with pytest.raises(UserError, match="its faces do not have the label expression; align the photos again"):
        evaluate_classification(run, tmp_path / "plain")
    with pytest.raises(UserError, match=r"has the expression sad, which was not in the training set; it had"):
        classify(network, ShardSet.open(labelled), "expression", ["calm", "glad"])
    with pytest.raises(UserError, match="was trained with the recipe expression, so it has no recognizer"):
        evaluate_verification(run, shards=labelled)
