"""The batched MTCNN against facenet-pytorch's own, one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from hypothesis import given, settings
from hypothesis import strategies as st
from photo_folders import real_photos
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.ops import batched_nms

from sparface.faces import Alignment, list_photos, networks, open_photo
from sparface.faces.batches import aligned
from sparface.faces.cascade import _Candidates
from sparface.faces.detect import Detection, Detector
from sparface.faces.sums import Sums

pytestmark = pytest.mark.usefixtures("one_thread")
LIKENESS = 1e-2
"""Pixels between the same side or landmark found by both."""


@pytest.fixture(scope="module")
def lfw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 photos of 10 people."""
    return real_photos(tmp_path_factory.mktemp("lfw"), "lfw/images", 10, 2)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_rectangles_are_averaged_as_torch_does(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 3)).astype(np.uint8)
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    size = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    owner = data.draw(st.integers(0, 2))
    crop = torch.from_numpy(images[owner, top:bottom, left:right]).permute(2, 0, 1)[None].double()
    expected = (interpolate(crop, size=size, mode="area") - 127.5) / 128
    boxes = np.array([[left, top, right, bottom]] * 2)
    found = Sums(list(images)).resized((boxes, np.array([owner, owner])), size)
    assert found.shape == (2, 3, *size) and np.allclose(found[1:], expected, atol=1e-6)


def test_large_faces_are_those_of_facenet_pytorch(lfw: Path) -> None:
    photos = [open_photo(photo.path) for photo in list_photos(lfw)]
    reference, seen = MTCNN(keep_all=True), 0
    for photo, faces in zip(photos, Detector().detect(photos), strict=True):
        boxes, scores, landmarks = reference.detect(Image.fromarray(photo), landmarks=True)
        for face in faces:
            nearest = int(np.abs(boxes - np.array(face.box)).max(1).argmin())
            assert np.abs(boxes[nearest] - np.array(face.box)).max() < LIKENESS
            assert np.abs(landmarks[nearest] - face.landmarks).max() < LIKENESS
            assert abs(scores[nearest] - face.score) < 1e-4
            seen += 1
    assert seen >= len(photos)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(1, 4), st.sampled_from([0.3, 0.5, 0.7]), st.integers(0, 1000))
def test_overlaps_are_dropped_as_torchvision_does(count: int, groups: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 20, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 20, (count, 2))], 1).astype(np.float32)
    scores, within = random.random(count).astype(np.float32), random.integers(0, groups, count)
    found = _Candidates(boxes, scores, within, boxes).apart(share, within)
    expected = batched_nms(*(torch.from_numpy(values) for values in (boxes, scores, within)), share)
    assert sorted(found) == sorted(expected.tolist())


def test_every_layout_of_tensors_finds_the_same_faces(lfw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [open_photo(photo.path) for photo in list_photos(lfw)[:6]]
    usual = Detector().detect(photos)
    monkeypatch.setattr(networks, "BLOCKED", not networks.BLOCKED)
    for some, others in zip(usual, Detector().detect(photos), strict=True):
        assert len(some) == len(others)
        assert all(_near(one, other) for one, other in zip(some, others, strict=True))


def test_company_does_not_change_what_is_found(lfw: Path) -> None:
    photos = [open_photo(photo.path) for photo in list_photos(lfw)[:6]]
    nothing = np.full_like(photos[0], 120)
    detector = Detector()
    together = detector.detect([*photos, nothing])
    assert together.pop() == []
    for photo, faces in zip(photos, together, strict=True):
        (alone,) = detector.detect([photo])
        assert len(alone) == len(faces)
        assert all(_near(one, other) for one, other in zip(alone, faces, strict=True))


def test_going_on_anywhere_gives_the_same_faces(lfw: Path) -> None:
    photos = list_photos(lfw)
    whole = list(aligned(photos, Alignment(size=64), 1))
    for done in (1, 8, 13, 20):
        rest = list(aligned(photos, Alignment(size=64), 1, done))
        assert len(rest) == len(photos) - done
        for one, other in zip(whole[done:], rest, strict=True):
            assert not isinstance(one, str) and not isinstance(other, str)
            assert (one[0] == other[0]).all() and one[1] == other[1]


def _near(one: Detection, other: Detection) -> bool:
    sides = np.abs(np.array(one.box) - np.array(other.box)).max()
    return bool(max(sides, np.abs(one.landmarks - other.landmarks).max()) < LIKENESS)
