"""Whole runs of the recipe `expression`: they learn, validate, resume exactly, and mix in a stored set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from strategy_chain import Job, Segment, train_all

from sparface import cli
from sparface.config import Config
from sparface.errors import UserError
from sparface.evaluation.classification import evaluate_classification
from sparface.runs.trained import open_run
from sparface.shards import ShardSet, ShardSetWriter
from sparface.training import loop
from sparface.training.loop import train

pytestmark = pytest.mark.timeout(600)
KINDS = ("none", "stored", "on_the_fly", "free")
SHORT = (
    *("--recipe=expression", "--classifier.backbone=test_resnet", "--data.images_per_identity=1"),
    *("--data.identities_per_batch=8", "--data.workers=0", "--data.variation=mirror"),
    *("--training.log_every=48", "--training.checkpoint_every=240", "--adversarial.replays=2"),
)


@pytest.fixture(scope="module")
def configs(tiny: Callable[..., Config], labelled: Path) -> Callable[..., Config]:
    return lambda *options: tiny(*SHORT, f"--data.shards={labelled}", *options)


@pytest.fixture(scope="module")
def attacked(classifier: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adversarial examples of `labelled`, made by the command that users type."""
    out = tmp_path_factory.mktemp("attacked") / "set"
    command = f"attack --checkpoint {classifier} --shards {labelled} --attack fgsm --epsilon 0.1 --out {out}"
    assert cli.main(command.split()) == 0
    return out


@pytest.fixture(scope="module")
def runs(
    configs: Callable[..., Config], labelled: Path, attacked: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Each kind of training on its own, interrupted, and by two processes."""
    folder = tmp_path_factory.mktemp("runs")
    mixed = {"stored": (f"--data.mix={{{attacked}: 4}}",)}
    ways = {
        "whole": [Segment("single", 1, 128)],
        "resumed": [Segment("single", 1, 64), Segment("single", 1, 128)],
        "two": [Segment("ddp", 2, 128)],
    }
    options = ("--schedule.images=128", f"--validation.shards={labelled}", "--validation.every=64")
    jobs = [
        Job(
            configs(f"--adversarial.training={kind}", *options, *mixed.get(kind, ())),
            folder / f"{kind}-{way}",
            segments,
        )
        for kind in KINDS
        for way, segments in ways.items()
    ]
    train_all(jobs)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return open_run(run).weights("classifier")


def metrics(run: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        found |= json.loads(line)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_the_same(runs: Path, kind: str) -> None:
    whole, resumed = weights(runs / f"{kind}-whole"), weights(runs / f"{kind}-resumed")
    assert whole and all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_where_one_does(runs: Path, kind: str) -> None:
    one, two = weights(runs / f"{kind}-whole"), weights(runs / f"{kind}-two")
    for name, value in one.items():
        assert torch.allclose(value.double(), two[name].double(), rtol=1e-2, atol=1e-3), name
    first, second = metrics(runs / f"{kind}-whole"), metrics(runs / f"{kind}-two")
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-2)


def test_validation_is_the_evaluation_of_the_last_checkpoint(runs: Path, labelled: Path) -> None:
    run = runs / "none-whole"
    document, last = evaluate_classification(run, labelled), metrics(run)
    names = ("accuracy", "recall_macro", "f1_macro", "calibration_error")
    expected = {f"validation/{name}": document["figures"][name] for name in names}
    assert {name: last[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert document["classes"] == ["calm", "glad", "sad"]
    assert "adversarial_accuracy" in metrics(runs / "free-whole")


def test_it_learns_what_shows(configs: Callable[..., Config], labelled: Path, tmp_path: Path) -> None:
    config = configs("--schedule.images=1200", "--optimizer.learning_rate=3e-3", "--training.log_every=400")
    assert train(config, tmp_path / "run")
    assert evaluate_classification(tmp_path / "run", labelled)["figures"]["accuracy"] > 0.9


def test_a_stored_set_is_mixed_in(
    configs: Callable[..., Config], labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its classes have the same numbers, though it has not all of them."""
    with ShardSetWriter(tmp_path / "made", name="made", size=(32, 32), columns=["expression"]) as writer:
        for face in ShardSet.open(labelled).faces():
            if face.meta["expression"] != "calm":
                writer.add(replace(face, key=f"{face.key}-v001"))
    seen: dict[str, set[int]] = {}

    class Watched(loop.Trainer):
        def update(self, batches: list[Any]) -> int:
            for key, label in zip(batches[0].keys, batches[0].labels.tolist(), strict=True):
                seen.setdefault(key, set()).add(label)
            return super().update(batches)

    monkeypatch.setattr(loop, "Trainer", Watched)
    mixed = ("--adversarial.training=stored", f"--data.mix={{{tmp_path / 'made'}: 4}}")
    assert train(configs(*mixed, "--schedule.images=160"), tmp_path / "run")
    truth = {face.key: face.meta["expression"] for face in ShardSet.open(labelled).faces()}
    names = ["calm", "glad", "sad"]
    assert all({names.index(truth[key.removesuffix("-v001")])} == labels for key, labels in seen.items())
    assert any(key.endswith("-v001") for key in seen)


def test_a_set_without_expressions_is_refused_in_one_line(
    configs: Callable[..., Config], faces: Path, labelled: Path, tmp_path: Path
) -> None:
    for options in ((f"--data.shards={faces}",), (f"--validation.shards={faces}",)):
        with pytest.raises(UserError, match="its faces do not have the label expression; align") as error:
            train(configs(*options), tmp_path / "run")
        assert str(faces) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_starts_from_weights_for_imagenet_or_another_run(
    configs: Callable[..., Config], runs: Path, tmp_path: Path
) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "test_resnet.pth")
    sources = {"file": tmp_path / "test_resnet.pth", "folder": tmp_path, "run": runs / "none-whole"}
    for name, source in sources.items():
        assert train(configs(f"--training.start_from={source}", "--schedule.images=8"), tmp_path / name)
        events = [json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines()]
        assert events[0]["kind"] == "start" and len(events[0]["sha256"]) == 64
