"""Recognizers behind a purifier or one of its rivals, with and without attacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from purifier_runs import write_purifier
from sparface import cli
from sparface.evaluation import detection, verification
from sparface.evaluation.attacked import evaluate_robustness
from sparface.evaluation.identify import evaluate_identification
from sparface.evaluation.pairs import draw_pairs, references
from sparface.evaluation.purifiers import Purified, draws_of, open_cleaner
from sparface.evaluation.recognizers import open_recognizer
from sparface.evaluation.settings import RobustnessSettings
from sparface.evaluation.verification import evaluate_verification
from sparface.shards.set import ShardSet

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "DRAWN_PAIRS", 30)


@pytest.fixture(scope="module")
def purifier(faces: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_purifier(tmp_path_factory.mktemp("runs") / "purifier", faces.folder)


def pictures(faces: ShardSet, count: int) -> torch.Tensor:
    images = np.stack([face.image for _, face in faces.faces_at(range(count))])
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


def test_masks_depend_on_seed_face_and_draw_alone(purifier: Path, faces: ShardSet) -> None:
    x = pictures(faces, 4)
    first, other = (open_cleaner(str(purifier), CPU, seed).network for seed in (0, 1))
    with torch.no_grad():
        whole = first(x)
        alone = torch.cat([first(x[i : i + 1]) for i in (2, 0)])
        assert torch.allclose(alone, whole[[2, 0]], atol=1e-5)
        assert (first(x, 1) - whole).abs().mean() > 0.005
        assert (other(x) - whole).abs().mean() > 0.005
        assert (first(x + 1e-5) - whole).abs().mean() > 0.005, "a face that was changed meets other masks"


def test_an_attacker_never_sees_the_masks_that_judge(purifier: Path, run: Path, faces: ShardSet) -> None:
    opened = open_recognizer(run).purified(str(purifier))
    assert isinstance(opened.network, Purified)
    x = pictures(faces, 2)
    with torch.no_grad():
        judged = opened.network(x)
        seen = [draw(x) for draw in draws_of(opened.network, 5)]
    assert len(seen) == 5
    assert all((one - judged).abs().max() > 1e-4 for one in seen)
    (mean,) = draws_of(opened.network, 0)
    with torch.no_grad():
        purifier_alone = opened.network.cleaner.purifier
        assert torch.equal(mean(x), opened.network.network(purifier_alone(x)))
    rival = open_recognizer(run).purified("blur:1.0")
    assert draws_of(rival.network, 5) == [rival.network], "nothing of it is random"


@pytest.mark.parametrize("what", ["RUN", "jpeg:50", "blur:1.5", "tv:0.2"])
def test_figures_are_those_of_cleaned_faces(
    what: str, purifier: Path, run: Path, faces: ShardSet, tmp_path: Path
) -> None:
    source = str(purifier) if what == "RUN" else what
    words = ["evaluate", "verification", "--checkpoint", str(run), "--shards", str(faces.folder)]
    assert cli.main([*words, "--purify", source, "--json", str(tmp_path / "out.json")]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    opened, cleaner = open_recognizer(run), open_cleaner(source, CPU)
    listed = draw_pairs(faces, 30, 0)
    with torch.no_grad():
        embedded = opened.network(cleaner.network(pictures(faces, len(faces)))).numpy()
    embeddings = {name: embedded[int(name[1:])] for name in references(listed)}
    expected = verification.score(listed, embeddings).figures()
    assert document["figures"] == pytest.approx(expected, abs=1e-6)
    assert document["provenance"]["purifier"] == cleaner.digest
    plain = evaluate_verification(run, shards=faces.folder)
    assert plain["provenance"]["purifier"] is None and plain["name"] != document["name"]
    same = ("recognizer_digest", "parameters", "mirror")
    assert [plain["provenance"][key] for key in same] == [document["provenance"][key] for key in same]
    assert (run / "evaluations" / f"{document['name']}-000000640.json").is_file()


def test_people_are_identified_behind_it(purifier: Path, run: Path, faces: ShardSet) -> None:
    found = evaluate_identification(run, faces.folder, purify=str(purifier))
    assert found["name"].endswith("-through-purifier") and found["provenance"]["purifier"]


def accuracy(run: Path, faces: ShardSet, purify: str, adaptive: bool, attack: str = "pgd") -> float:
    settings = RobustnessSettings(attacks=attack, epsilons="0.03", steps=6, adaptive=adaptive, draws=3)
    found = evaluate_robustness(run, shards=faces.folder, settings=settings, purify=purify)
    assert ("unaware" in found["name"]) is not adaptive
    return float(found["figures"][f"{attack}/0.03/accuracy"])


@pytest.mark.parametrize("what", ["RUN", "blur:2.0"])
def test_an_attack_that_knows_of_it_is_stronger(
    what: str, purifier: Path, run: Path, faces: ShardSet
) -> None:
    source = str(purifier) if what == "RUN" else what
    unaware, adaptive = (accuracy(run, faces, source, adaptive) for adaptive in (False, True))
    assert adaptive < unaware - 0.1


def test_an_unaware_attack_is_the_one_on_the_recognizer_alone(run: Path, faces: ShardSet) -> None:
    """What hardly changes a face hardly helps against it."""
    settings = RobustnessSettings(attacks="pgd", epsilons="0.03", steps=6)
    plain = evaluate_robustness(run, shards=faces.folder, settings=settings)
    for adaptive in (True, False):
        behind = accuracy(run, faces, "blur:0.05", adaptive)
        assert behind == pytest.approx(plain["figures"]["pgd/0.03/accuracy"], abs=0.04)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("jpeg:0", "jpeg:0 is not allowed; give jpeg:NUMBER between 1 and 100"),
        ("tv:", "tv: is not allowed; give tv:NUMBER between 0.0001 and 100"),
        ("blur:nan", "blur:nan is not allowed"),
        ("nowhere", "nowhere: not a run (no config.yaml)"),
        ("RECOGNIZER", "was trained with the recipe sparring, so it has no purifier"),
        ("SMALL", "but size is 32; give a set aligned with --size 32"),
    ],
)
def test_what_cannot_purify_is_named(
    what: str, message: str, run: Path, faces: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "SMALL":
        from sparface.faces.drawn import draw_set

        draw_set(tmp_path / "small", 6, 6, size=32, seed=0)
        write_purifier(tmp_path / "run", tmp_path / "small")
    source = {"RECOGNIZER": str(run), "SMALL": str(tmp_path / "run")}.get(what, what)
    words = ["--checkpoint", str(run), "--shards", str(faces.folder), "--purify", source]
    assert cli.main(["evaluate", "verification", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line


def detected(run: Path, faces: ShardSet, purify: Path, adaptive: str, out: Path) -> dict[str, float]:
    words = ["evaluate", "detection", "--checkpoint", str(run), "--shards", str(faces.folder)]
    options = ["--attacks", "pgd", "--epsilons", "0.05", "--steps", "6", "--draws", "2"]
    given = ["--purify", str(purify), "--adaptive", adaptive, "--json", str(out)]
    assert cli.main([*words, *options, *given]) == 0
    return dict(json.loads(out.read_text())["figures"])


def test_attacked_faces_are_told_from_others_unless_they_hide(
    purifier: Path, run: Path, faces: ShardSet, tmp_path: Path
) -> None:
    found = {
        adaptive: detected(run, faces, purifier, adaptive, tmp_path / f"{adaptive}.json")
        for adaptive in ("true", "false")
    }
    names = {f"pgd/0.05/{score}/{figure}" for score in ("shift", "memory") for figure in ("auc", "found")}
    assert found["false"].keys() == names
    assert found["false"]["pgd/0.05/shift/auc"] > found["true"]["pgd/0.05/shift/auc"]
    assert all(0 <= value <= 1 for of in found.values() for value in of.values())


def test_the_area_is_that_of_scikit_learn(
    purifier: Path, run: Path, faces: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[np.ndarray, list[np.ndarray]]] = []
    original = detection._scores

    def watched(*given: Any) -> Any:
        seen.append(original(*given))
        return seen[-1]

    monkeypatch.setattr(detection, "_scores", watched)
    settings = RobustnessSettings(attacks="fgsm", epsilons="0.02", adaptive=False)
    document = detection.evaluate_detection(run, str(purifier), shards=faces.folder, settings=settings)
    ((clean, (attacked,)),) = seen
    labels = np.repeat([0, 1], len(clean))
    for column, name in enumerate(("shift", "memory")):
        area = roc_auc_score(labels, np.concatenate([clean[:, column], attacked[:, column]]))
        assert document["figures"][f"fgsm/0.02/{name}/auc"] == pytest.approx(area, abs=0.02)
