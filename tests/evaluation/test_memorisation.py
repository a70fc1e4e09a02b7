"""Copies of training faces are found, and faces that are no copies are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparface import cli
from sparface.evaluation.bootstrap import bootstrap
from sparface.evaluation.memorisation import Faces, evaluate_memorisation, memorised, nearest, summary
from sparface.shards import split
from sparface.shards.format import Face
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter


def made_faces(folder: Path, faces: list[Face], noise: int) -> Path:
    """The faces, so many grey levels off."""
    rng = np.random.default_rng(0)
    with ShardSetWriter(folder, name=folder.name, size=(64, 64)) as writer:
        for face in faces:
            change = rng.integers(-noise, noise + 1, face.image.shape)
            image = np.clip(face.image + change, 0, 255).astype(np.uint8)
            writer.add(Face(f"{face.key}-v1", image, face.identity, face.source, {"synthetic": True}))
            writer.add(Face(f"{face.key}-v0", face.image, face.identity, face.source, {"variant": 0}))
    return folder


@pytest.fixture(scope="module")
def parts(faces: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, ShardSet]:
    """Photos that were trained on, and other photos of the same people."""
    folder = tmp_path_factory.mktemp("parts")
    training, held_out = (
        split(faces.folder, folder / name, share=0.6, by="photos", rest=name == "rest")
        for name in ("seen", "rest")
    )
    return training, held_out


def test_copies_are_found(run: Path, parts: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    training, held_out = parts
    seen, unseen = list(training.faces()), list(held_out.faces())
    copied = made_faces(tmp_path / "copied", seen, 2)
    fresh = made_faces(tmp_path / "fresh", unseen, 2)
    words = ["evaluate", "memorisation", f"--checkpoint={run}", f"--training={training.folder}"]
    words += [f"--held_out={held_out.folder}", f"--sheet={tmp_path / 'sheet.png'}", "--json"]
    assert cli.main([*words, str(tmp_path / "m.json"), f"--shards={copied}"]) == 0
    document = json.loads((tmp_path / "m.json").read_text())
    found = document["figures"]
    assert found["copies"] > 0.9 and found["same_person"] == 1 and found["made"] > found["held_out"]
    assert document["provenance"]["faces"] == len(seen), "the copied sources themselves are left out"
    assert document["quantiles"]["made"] == sorted(document["quantiles"]["made"])
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.size == (1020, 900) and len(sheet.getcolors(1 << 20) or []) > 1000

    other = evaluate_memorisation(run, fresh, training.folder, held_out.folder)
    assert other["figures"]["copies"] < 0.1 and other["independent"]
    assert "held-out" in summary(other)


def test_the_figures_are_as_defined() -> None:
    """Against a search by hand, with people who are drawn by the bootstrap."""
    rng = np.random.default_rng(0)

    def some(count: int) -> Faces:
        x = rng.normal(size=(count, 3))
        people = [f"p{number % 4}" for number in range(count)]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return Faces(np.arange(count), people, [], x)

    training, made, held_out = some(30), some(700), some(200)
    of_made, of_held_out = nearest(made, training), nearest(held_out, training)
    for one, found in ((made, of_made), (held_out, of_held_out)):
        every = np.array([[float(a @ b) for b in training.embeddings] for a in one.embeddings])
        assert np.allclose(found.cosine, every.max(1)) and (found.row == every.argmax(1)).all()
    statistics = memorised(of_made, of_held_out, training, ["p0", "p1", "p2", "p3"])
    estimates = {name: bootstrap(one, 4) for name, one in statistics.items()}
    bound = np.sort(of_held_out.cosine)[-3]  # 2 of 200 are above it
    assert estimates["copies"].value == pytest.approx((of_made.cosine > bound).mean())
    assert estimates["made"].value == pytest.approx(of_made.cosine.mean())
    same = [training.people[row] == name for row, name in zip(of_made.row, made.people, strict=True)]
    assert estimates["same_person"].value == pytest.approx(np.mean(same))
    assert estimates["copies"].low <= estimates["copies"].value <= estimates["copies"].high


def test_sets_that_do_not_go_together(
    run: Path, faces: ShardSet, parts: tuple[ShardSet, ShardSet], capsys: pytest.CaptureFixture[str]
) -> None:
    training, held_out = (str(part.folder) for part in parts)
    words = ["evaluate", "memorisation", "--checkpoint", str(run), "--shards", held_out, "--training"]
    for more, message in (
        ([training, "--held_out", str(faces.folder)], "of its faces are in"),
        ([training, "--held_out", held_out, "--faces", "0"], "--faces: 0 is not allowed"),
        ([training, "--held_out", "nowhere"], "nowhere"),
    ):
        assert cli.main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert message in said.splitlines()[-1] and "Traceback" not in said
