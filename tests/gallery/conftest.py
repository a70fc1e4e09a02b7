"""Photos of drawn people, and an untrained recognizer: equal photos have equal embeddings."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from portraits import portrait
from sparface.faces.detect import Detector
from sparface.models.recognizer import RecognizerConfig, build_recognizer


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people, two photos each on which their face is found, and a photo of a wall."""
    folder, detector = tmp_path_factory.mktemp("photos"), Detector()
    for number, name in enumerate(("Ann", "Bob", "Cid")):
        (folder / name).mkdir()
        drawn = (portrait(number, photo) for photo in range(1, 50))
        found = (photo for photo in drawn if len(detector.detect([photo])[0]) == 1)
        for photo, image in enumerate(islice(found, 2), 1):
            Image.fromarray(image).save(folder / name / f"{photo}.png")
    Image.new("RGB", (160, 160), (40, 90, 160)).save(folder / "Cid" / "wall.png")
    return folder


@pytest.fixture(scope="session")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a FaceNet as facenet-pytorch saves them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "facenet.pt"
    torch.save(build_recognizer(RecognizerConfig()).backbone.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
