"""Verification under attack, against torchattacks and a plain computation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn

import small_onnx
from sparface import cli
from sparface.evaluation import verification
from sparface.evaluation.attacked import evaluate_robustness
from sparface.evaluation.identification import draw
from sparface.evaluation.pairs import draw_pairs
from sparface.evaluation.recognizers import open_recognizer
from sparface.evaluation.robustness import summary
from sparface.evaluation.settings import RobustnessSettings
from sparface.evaluation.subjects import spread_pairs
from sparface.evaluation.verification import evaluate_verification
from sparface.runs.record import read_metrics
from sparface.runs.trained import open_run
from sparface.shards.set import ShardSet

PAIRS = 30


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "DRAWN_PAIRS", PAIRS)


class AgainstOne(nn.Module):
    """Scores of a face in a pair: its cosine to the other one, and the threshold."""

    def __init__(self, recognizer: nn.Module, other: Tensor, threshold: float) -> None:
        super().__init__()
        self.recognizer, self.other, self.threshold = recognizer, other, threshold

    def forward(self, faces: Tensor) -> Tensor:
        cosines = self.recognizer(faces) @ self.other
        return torch.stack([cosines, torch.full_like(cosines, self.threshold)], 1)


def test_accuracy_under_fgsm_is_that_of_torchattacks(run: Path, faces: ShardSet) -> None:
    settings = RobustnessSettings(attacks="fgsm", epsilons="0.002,0.05")
    found = evaluate_robustness(run, shards=faces.folder, settings=settings)
    clean = evaluate_verification(run, shards=faces.folder)
    assert found["figures"]["accuracy"] == pytest.approx(clean["figures"]["accuracy"])
    recognizer = open_recognizer(run).network.requires_grad_(False)
    pairs = draw_pairs(faces, PAIRS, 0)
    images = {
        i: torch.from_numpy(f.image).permute(2, 0, 1).float() / 255 for i, f in enumerate(faces.faces())
    }
    for epsilon in (0.002, 0.05):
        right: dict[int, list[bool]] = {}
        fooled: dict[bool, list[bool]] = {True: [], False: []}
        for pair in pairs:
            first, second = (images[int(name[1:])][None] for name in (pair.first, pair.second))
            distance = clean["folds"]["threshold"][pair.fold]
            network = AgainstOne(recognizer, recognizer(second)[0], 1 - distance**2 / 2).eval()
            label = torch.tensor([0 if pair.same else 1])
            before = network(first).argmax(1) == label
            attacked = torchattacks.FGSM(network, epsilon)(first, label)
            after = network(attacked).argmax(1) == label
            right.setdefault(pair.fold, []).append(bool(before and after))
            if before:
                fooled[pair.same].append(not after)
        expected = np.mean([np.mean(fold) for fold in right.values()])
        assert found["figures"][f"fgsm/{epsilon:g}/accuracy"] == pytest.approx(expected)
        for kind, same in (("dodging", True), ("impersonation", False)):
            assert found["figures"][f"fgsm/{epsilon:g}/{kind}"] == pytest.approx(np.mean(fooled[same]))


def test_stronger_attacks_leave_less_and_all_of_it_is_stored(
    run: Path, faces: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "robustness", "--checkpoint", str(run), "--shards", str(faces.folder)]
    options = ["--attacks", "pgd,apgd,pixel,square,trained", "--epsilons", "0.001,0.1", "--counts", "1,4"]
    small = ["--steps", "8", "--queries", "5", "--generator", str(run), "--json", str(tmp_path / "out.json")]
    assert cli.main([*words, *options, *small]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    rows = {(row["attack"], row["strength"]): row for row in document["curves"]}
    assert len(rows) == 10
    for attack, strengths in (("pgd", (0.001, 0.1)), ("apgd", (0.001, 0.1)), ("pixel", (1, 4))):
        weak, strong = (rows[attack, strength] for strength in strengths)
        assert strong["accuracy"] <= weak["accuracy"] <= document["figures"]["accuracy"]
        assert weak["interval"][0] <= weak["accuracy"] <= weak["interval"][1]
    assert rows["pgd", 0.1]["accuracy"] < 0.2
    assert rows["pgd", 0.1]["queries"] == 8 and rows["trained", 0.1]["queries"] == 0
    assert 1 <= rows["square", 0.1]["queries"] <= 5
    assert rows["apgd", 0.1]["settings"]["loss"] == "margin"
    shown = capsys.readouterr().out
    assert summary(document) in shown and "trained" in shown
    stored = list((run / "evaluations").glob(f"{document['name']}-[0-9]*.json"))
    assert len(stored) == 1
    assert cli.main(["compare", str(run), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    drawn = [f"Accuracy under the attack {name} " in page for name in ("pgd", "pixel", "cw")]
    assert drawn == [True, True, False]
    names = {name for record in read_metrics(run) for name in record}
    assert any(name.startswith("evaluation/robustness-on-") and "apgd/0.1/accuracy" in name for name in names)


def test_attacks_on_another_recognizer_are_weaker(run: Path, faces: ShardSet, tmp_path: Path) -> None:
    onnx = small_onnx.write(tmp_path / "small.onnx")
    settings = RobustnessSettings(attacks="pgd", epsilons="0.03", steps=5)
    own = evaluate_robustness(run, shards=faces.folder, settings=settings)
    other = evaluate_robustness(run, shards=faces.folder, settings=settings, surrogate=onnx)
    assert own["figures"]["accuracy"] == other["figures"]["accuracy"]
    assert own["curves"][0]["accuracy"] < other["curves"][0]["accuracy"]
    assert own["provenance"]["attacked"] != other["provenance"]["attacked"]


@pytest.mark.parametrize("share", [2, 3, 5])
def test_a_part_of_the_pairs_has_both_kinds(share: int, run: Path, faces: ShardSet) -> None:
    """Drawn pairs are of the same and of different people by turns: every second one is of one kind."""
    known = draw_pairs(faces, verification.DRAWN_PAIRS, verification.DRAWN_SEED)
    settings = RobustnessSettings(attacks="fgsm", epsilons="0.01", most=len(known) // share)
    document = evaluate_robustness(run, shards=faces.folder, settings=settings)
    assert {"fgsm/0.01/dodging", "fgsm/0.01/impersonation"} <= document["figures"].keys()


def test_a_part_of_the_pairs_is_spread_over_the_list(faces: ShardSet) -> None:
    pairs = draw_pairs(faces, 6_000, seed=0)
    some = spread_pairs(pairs, len(pairs) // 4)
    assert sum(pair.same for pair in some) == len(some) / 2
    assert some == [pair for pair in pairs if pair in some], "in the order of the list"
    assert {pair.fold for pair in some} == {pair.fold for pair in pairs}
    assert spread_pairs(pairs, 0) == pairs == spread_pairs(pairs, 10**6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attacks", "fgsm,cw"], "--attacks: cw is unknown or repeated; known: fgsm, pgd"),
        (["--attacks", ","], "--attacks: is empty; name at least one attack"),
        (["--epsilons", "0.1,abc"], "--epsilons: 0.1,abc is not allowed; give numbers"),
        (["--epsilons", "1.5"], "--epsilon: 1.5 is not allowed; must be between 0 and 1"),
        (["--attacks", "trained"], "--generator: goes with the attack `trained`; give both or neither"),
        (["--gallery", "1", "--pairs", "pairs.txt"], "--gallery: goes with --shards alone"),
        (["--gallery", "-1"], "--gallery: -1 is not allowed; must be 0 to 1,000"),
        (["--most", "-1"], "--most: -1 is not allowed; must not be negative"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    options: list[str], message: str, run: Path, faces: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "robustness", "--checkpoint", str(run), "--shards", str(faces.folder)]
    assert cli.main([*words, *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


class Naming(nn.Module):
    """The largest cosine of a face to the enrolled faces of each person."""

    def __init__(self, recognizer: nn.Module, gallery: Tensor) -> None:
        super().__init__()
        self.recognizer, self.gallery = recognizer, gallery  # [people, images, E]

    def forward(self, faces: Tensor) -> Tensor:
        return torch.einsum("ne,pge->npg", self.recognizer(faces), self.gallery).amax(2)


def test_names_under_fgsm_are_right_as_often_as_with_torchattacks(
    run: Path, faces: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "robustness", "--checkpoint", str(run), "--shards", str(faces.folder)]
    assert cli.main([*words, "--gallery", "2", "--attacks", "fgsm", "--epsilons", "0.01", "--seed", "3"]) == 0
    (stored,) = (run / "evaluations").glob(f"robustness-gallery-2-on-{faces.manifest.name}-*.json")
    document = json.loads(stored.read_text())
    recognizer = open_recognizer(run).network.requires_grad_(False)
    x = torch.from_numpy(np.stack([face.image for face in faces.faces()])).permute(0, 3, 1, 2) / 255
    people = np.array([faces.identities.index(face.identity) for face in faces.faces()])
    (*_, drawn) = draw(people, np.arange(len(people)), 2, 3, hold_out=True)
    with torch.no_grad():
        enrolled = [recognizer(x[[i for i in drawn.enrolled if people[i] == p]]) for p in range(12)]
    network = Naming(recognizer, torch.stack(enrolled)).eval()
    probes, labels = x[drawn.probes], torch.from_numpy(people[drawn.probes])
    attacked = torchattacks.FGSM(network, 0.01)(probes, labels)
    before, after = (network(some).argmax(1) == labels for some in (probes, attacked))
    assert document["figures"]["accuracy"] == pytest.approx(before.float().mean().item())
    assert document["figures"]["fgsm/0.01/accuracy"] == pytest.approx((before & after).float().mean().item())
    assert document["figures"]["fgsm/0.01/success"] == pytest.approx((~after[before]).float().mean().item())
    assert document["provenance"]["enrolled"] == 24 and "success" in capsys.readouterr().out


def test_a_classifier_under_fgsm_is_right_as_often_as_with_torchattacks(
    classifier: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(classifier), "--shards", str(labelled), "--attacks", "fgsm,pixel"]
    assert cli.main(["evaluate", "robustness", *words, "--epsilons", "0.05", "--counts", "2"]) == 0
    (stored,) = (classifier / "evaluations").glob("robustness-on-labelled-*.json")
    figures = json.loads(stored.read_text())["figures"]
    network = open_run(classifier).network("classifier").eval()
    faces, classes = list(ShardSet.open(labelled).faces()), ["calm", "dull", "glad", "sad"]
    x = torch.from_numpy(np.stack([face.image for face in faces])).permute(0, 3, 1, 2) / 255
    labels = torch.tensor([classes.index(face.meta["expression"]) for face in faces])
    attacked = torchattacks.FGSM(network, 0.05)(x, labels)
    before, after = (network(faces).argmax(1) == labels for faces in (x, attacked))
    assert figures["accuracy"] == pytest.approx(before.float().mean().item())
    assert figures["fgsm/0.05/accuracy"] == pytest.approx((before & after).float().mean().item())
    assert figures["fgsm/0.05/success"] == pytest.approx((~after[before]).float().mean().item())
    assert "success" in capsys.readouterr().out
    assert cli.main(["evaluate", "robustness", *words, "--pairs", "pairs.txt"]) == 2
    assert "give --shards, a set with the classes" in capsys.readouterr().err
