"""`sparface purify`: photos, and sets by one process, by two, and after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from made_sets import digests
from purifier_runs import write_purifier
from sparface import cli
from sparface.evaluation.purifiers import open_cleaner
from sparface.shards import ShardSet, verify


@pytest.fixture(scope="module")
def purifier(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_purifier(tmp_path_factory.mktemp("runs") / "purifier", faces)


def words(purifier: Path | str, faces: Path, out: Path, *more: str) -> list[str]:
    return ["purify", "--checkpoint", str(purifier), str(faces), str(out), *more]


SMALL = ("--shard_samples", "20", "--batch_size", "8")


@pytest.fixture(scope="module")
def purified(purifier: Path, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("purified") / "set"
    assert cli.main(words(purifier, faces, out, *SMALL)) == 0
    return ShardSet.open(out)


def test_every_face_is_purified_and_says_by_what(purified: ShardSet, purifier: Path, faces: Path) -> None:
    assert verify(purified.folder) == [] and len(purified) == len(ShardSet.open(faces))
    cleaner = open_cleaner(str(purifier), torch.device("cpu"))
    sources = {face.key: face for face in ShardSet.open(faces).faces()}
    for face in purified.faces():
        source = sources.pop(face.meta["parent"])
        assert face.identity == source.identity and face.meta["synthetic"] is True
        assert face.meta["maker"] == f"purified by {cleaner.digest}"
        with torch.no_grad():
            made = cleaner.network(torch.from_numpy(source.image).permute(2, 0, 1)[None] / 255)[0]
        assert np.abs(face.image - (made * 255).permute(1, 2, 0).numpy()).max() <= 0.51
    assert not sources
    provenance = purified.manifest.provenance
    assert "sparface purify" in provenance["by"] and provenance["settings"]["seed"] == 0


def test_two_processes_and_a_kill_leave_the_same_bytes(
    purified: ShardSet, purifier: Path, faces: Path, tmp_path: Path
) -> None:
    for part in ("1/2", "0/2"):
        assert cli.main(words(purifier, faces, tmp_path / "parts" / "set", *SMALL, "--part", part)) == 0
    assert digests(tmp_path / "parts" / "set") == digests(purified.folder)
    out = tmp_path / "killed" / "set"
    command = [sys.executable, "-m", "sparface", *words(purifier, faces, out, *SMALL)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("*.tar")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.glob("*.tar"))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert digests(out) == digests(purified.folder)
    assert cli.main(words(purifier, faces, out, *SMALL, "--verify", "0.5")) == 0
    assert cli.main(words(purifier, faces, out, *SMALL, "--seed", "1")) == 2, "made with other settings"


def test_a_photo_becomes_a_png(purifier: Path, faces: Path, tmp_path: Path) -> None:
    source = next(ShardSet.open(faces).faces()).image
    Image.fromarray(source).resize((200, 200)).save(tmp_path / "photo.jpg")
    for out in ("a.png", "b.png"):
        options = ["--already-cropped"]
        assert cli.main(words(purifier, tmp_path / "photo.jpg", tmp_path / out, *options)) == 0
    made = np.array(Image.open(tmp_path / "a.png"))
    assert (
        made.shape == (32, 32, 3) and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    )
    assert np.abs(made.astype(int) - source).mean() < 60
    assert cli.main(words("blur:2", tmp_path / "photo.jpg", tmp_path / "c.png", "--already-cropped")) == 0


def test_what_cannot_be_purified_is_named(
    purifier: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    for photo, out, message in (
        ("broken.jpg", "out.png", "broken.jpg: "),
        ("black.png", "out.png", "; if it is a tight crop of a face, give --already-cropped"),
        ("black.png", "out.jpg", "out.jpg: is written as PNG; name a file that ends in .png"),
        ("nowhere.jpg", "out.png", "nowhere.jpg"),
    ):
        assert cli.main(words(purifier, tmp_path / photo, tmp_path / out)) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert message in line and not (tmp_path / out).exists()
    assert cli.main(words(purifier, faces, tmp_path / "set", "--batch_size", "0")) == 2
    assert "--batch_size: 0 is not allowed; must be at least 1" in capsys.readouterr().err
