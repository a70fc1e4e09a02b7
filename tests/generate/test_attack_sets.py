"""`sparface attack`: adversarial examples as a shard set."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import small_onnx
from made_sets import digests, write_run
from sparface import cli
from sparface.config import Config
from sparface.evaluation.recognizers import open_recognizer
from sparface.runs.trained import open_run
from sparface.shards import ShardSet, verify


@pytest.fixture(scope="module")
def victim(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "recognizer", tiny())


def words(victim: Path, faces: Path, out: Path, *more: str) -> list[str]:
    paths = ["--checkpoint", str(victim), "--shards", str(faces), "--out", str(out)]
    return ["attack", *paths, "--shard_samples", "20", "--batch_size", "8", *more]


@pytest.fixture(scope="module")
def attacked(victim: Path, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("attacked") / "set.s0"  # a name that shards can't have
    assert cli.main(words(victim, faces, out, "--attack", "pgd", "--epsilon", "0.03", "--steps", "3")) == 0
    return ShardSet.open(out)


def test_an_attacked_set_is_sound_and_within_its_bound(attacked: ShardSet, faces: Path) -> None:
    sources = {face.key: face for face in ShardSet.open(faces).faces()}
    assert verify(attacked.folder) == [] and len(attacked) == len(sources)
    changes = []
    for face in attacked.faces():
        source = sources.pop(face.meta["parent"])
        assert (face.identity, face.meta["strength"]) == (source.identity, 0.03)
        assert face.meta["maker"].startswith("pgd on ") and face.meta["synthetic"] is True
        changes.append(np.abs(face.image.astype(int) - source.image).max())
    assert not sources and max(changes) == 7  # 0.03 is 7.65 grey levels
    assert attacked.manifest.name == "set_s0"
    settings = attacked.manifest.provenance["settings"]
    assert settings["attack"] == "pgd" and settings["steps"] == 3 and "queries" not in settings
    assert "sparface attack" in attacked.manifest.provenance["by"]


def test_attacked_faces_match_their_person_less(attacked: ShardSet, victim: Path, faces: Path) -> None:
    recognizer = open_recognizer(victim).network
    embedded = {}
    for name, shards in (("before", ShardSet.open(faces)), ("after", attacked)):
        found = [(face.identity, face.image) for face in shards.faces()]
        x = torch.from_numpy(np.stack([image for _, image in found])).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            embedded[name] = [name for name, _ in found], recognizer(x)
    people, clean = embedded["before"]
    assert people == embedded["after"][0]
    same = torch.tensor([[a == b for b in people] for a in people]) & ~torch.eye(
        len(people), dtype=torch.bool
    )
    before, after = ((x @ clean.T)[same].mean() for x in (clean, embedded["after"][1]))
    assert after < before - 0.01
    report = json.loads((attacked.folder / "report.json").read_text())
    assert report["means"]["reached"] > report["means"]["reached_before"]


def test_two_processes_and_a_kill_leave_the_same_bytes(
    attacked: ShardSet, victim: Path, faces: Path, tmp_path: Path
) -> None:
    options = ["--attack", "pgd", "--epsilon", "0.03", "--steps", "3"]
    for part in ("1/2", "0/2"):
        assert (
            cli.main(
                words(victim, faces, tmp_path / "parts" / attacked.folder.name, *options, "--part", part)
            )
            == 0
        )
    assert digests(tmp_path / "parts" / attacked.folder.name) == digests(attacked.folder)
    out = tmp_path / "killed" / attacked.folder.name
    command = [sys.executable, "-m", "sparface", *words(victim, faces, out, *options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("*.tar")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists() and list(out.glob("*.tar"))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert digests(out) == digests(attacked.folder)
    assert cli.main(words(victim, faces, out, *options, "--verify", "0.5")) == 0


def test_faces_are_moved_towards_other_people(victim: Path, faces: Path, tmp_path: Path) -> None:
    options = ["--attack", "apgd", "--steps", "5", "--epsilon", "0.1", "--targeted", "true"]
    assert cli.main(words(victim, faces, tmp_path / "set", *options)) == 0
    found = ShardSet.open(tmp_path / "set")
    targets = [(face.identity, face.meta["target"]) for face in found.faces()]
    assert all(own != target and target in found.identities for own, target in targets)
    assert len({target for _, target in targets}) > 6


@pytest.mark.parametrize("attack", ["fgsm", "pixel", "square"])
def test_an_onnx_file_is_attacked(attack: str, faces: Path, tmp_path: Path) -> None:
    onnx = small_onnx.write(tmp_path / "small.onnx")
    more = {"pixel": ["--steps", "2"], "square": ["--queries", "4"]}.get(attack, [])
    assert cli.main(words(onnx, faces, tmp_path / "set", "--attack", attack, *more)) == 0
    assert len(ShardSet.open(tmp_path / "set")) == len(ShardSet.open(faces))


def test_a_trained_generator_attacks_another_recognizer(
    victim: Path, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    # an untrained generator uses little of its bound
    options = ["--attack", "trained", "--generator", str(sparring_run), "--epsilon", "1"]
    assert cli.main(words(victim, faces, tmp_path / "set", *options)) == 0
    made = ShardSet.open(tmp_path / "set")
    sources = {face.key: face.image.astype(int) for face in ShardSet.open(faces).faces()}
    most = max(np.abs(face.image - sources[face.meta["parent"]]).max() for face in made.faces())
    assert most >= 3
    assert len(made.manifest.provenance["generator"]) == 64


@pytest.mark.parametrize("targeted", ["true", "false"])
def test_a_classifier_is_attacked_and_labels_are_kept(
    targeted: str, classifier: Path, labelled: Path, tmp_path: Path
) -> None:
    options = ["--attack", "pgd", "--epsilon", "0.2", "--targeted", targeted]
    assert cli.main(words(classifier, labelled, tmp_path / "set", *options)) == 0
    found, classes = ShardSet.open(tmp_path / "set"), ["calm", "dull", "glad", "sad"]
    assert found.classes("expression") == ShardSet.open(labelled).classes("expression")
    network, right, reached = open_run(classifier).network("classifier"), [], []
    for face in found.faces():
        with torch.no_grad():
            answer = classes[int(network(torch.from_numpy(face.image).permute(2, 0, 1)[None] / 255).argmax())]
        assert (face.meta["target"] is None) is (targeted == "false")
        assert face.meta["target"] != face.meta["expression"]
        right.append(answer == face.meta["expression"])
        reached.append(answer == face.meta["target"])
    assert np.mean(right) < 0.1 and bool(np.mean(reached) > 0.7) is (targeted == "true")
    report = json.loads((found.folder / "report.json").read_text())
    assert report["means"]["reached"] > 0.5 and "cosine_to_source" not in report
    assert not (found.folder / "report.png").exists() and (found.folder / "sheet.png").exists()


def test_what_cannot_be_attacked_is_named(
    victim: Path, sparring_run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (["--attack", "fgsm", "--epsilon", "2"], "--epsilon: 2.0 is not allowed; must be between 0 and 1"),
        (["--attack", "pixel", "--epsilon", "0.1"], "--epsilon: is not used by --attack pixel; remove it"),
        (["--attack", "trained"], "--generator: goes with --attack trained; give both or neither"),
        (["--generator", str(sparring_run)], "--generator: goes with --attack trained"),
        (["--attack", "trained", "--generator", str(victim)], "so it has no generator"),
    ):
        assert cli.main(words(victim, faces, tmp_path / "set", *options)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
        assert not (tmp_path / "set").exists()
