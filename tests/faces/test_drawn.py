"""Drawn people: pure, labelled, hard enough, and written whatever happens."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import draw_in_small_shards
import numpy as np
import pytest
from draw_in_small_shards import draw_small
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline

from sparface.errors import UserError
from sparface.faces import contact_sheet, draw_set, drawn_face, drawn_faces
from sparface.faces.drawn import person, scene
from sparface.faces.drawn.scenes import WEAR
from sparface.faces.sheet import sample_faces
from sparface.shards import verify


def test_a_face_is_a_pure_function_of_its_numbers() -> None:
    alone = drawn_face(3, 7, 2, 64)
    among = list(drawn_faces(8, 3, size=64, seed=3))[-1]
    assert among.key == alone.key and among.meta == alone.meta
    assert np.array_equal(among.image, alone.image)


@pytest.mark.parametrize("other", [(4, 7, 2), (3, 8, 2), (3, 7, 3)])
def test_every_number_changes_the_face(other: tuple[int, int, int]) -> None:
    assert not np.array_equal(drawn_face(3, 7, 2, 64).image, drawn_face(*other, 64).image)


def test_faces_are_labelled_and_keyed(tmp_path: Path) -> None:
    faces = list(drawn_faces(3, 4, size=48, seed=0))
    assert [face.identity for face in faces[::4]] == ["drawn-0-00000", "drawn-0-00001", "drawn-0-00002"]
    assert len({face.key for face in faces}) == 12
    assert all(face.image.shape == (48, 48, 3) and face.image.dtype == np.uint8 for face in faces)


def test_people_and_scenes_vary() -> None:
    people = [person(0, number) for number in range(60)]
    assert len({who.style for who in people}) >= 6 and len({who.beard for who in people}) >= 4
    scenes = [scene(0, 0, number) for number in range(200)]
    assert {view.wears for view in scenes} == set(WEAR)
    assert np.std([view.yaw for view in scenes]) > 0.1


def verification_accuracy(features: np.ndarray, seed: int) -> float:
    """Best accuracy of one threshold on distances; features [identities, images, F]."""
    rng = np.random.default_rng(seed)
    identities, images, _ = features.shape
    same = np.linalg.norm(features[:, 0::2] - features[:, 1::2], axis=-1).ravel()
    first, step = rng.integers(identities, size=len(same)), rng.integers(1, identities, len(same))
    one = features[first, rng.integers(images, size=len(same))]
    other = features[(first + step) % identities, rng.integers(images, size=len(same))]
    different = np.linalg.norm(one - other, axis=-1)
    thresholds = np.concatenate([same, different])[:, None]
    return float((((same <= thresholds).mean(1) + (different > thresholds).mean(1)) / 2).max())


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """100 people × 6 photos, as vectors of pixels."""
    faces = [face.image for face in drawn_faces(100, 6, size=48, seed=1)]
    return np.stack(faces).reshape(100, 6, -1).astype(np.float32)


def whitened(images: np.ndarray) -> np.ndarray:
    return (images - images.mean(-1, keepdims=True)) / images.std(-1, keepdims=True)


def test_pixels_and_colours_alone_do_not_tell_who_it_is(images: np.ndarray) -> None:
    assert 0.52 < verification_accuracy(images, 0) < 0.75
    assert verification_accuracy(whitened(images), 0) < 0.75
    assert verification_accuracy(images.reshape(100, 6, -1, 3).mean(2), 0) < 0.7


def test_what_tells_people_apart_can_be_learned_and_holds_for_others(images: np.ndarray) -> None:
    """Fisherfaces (Belhumeur et al. 1997) learned from 70 people verify the other 30, unlike pixels."""
    pixels = whitened(images)
    fisher = make_pipeline(
        PCA(80, whiten=True, svd_solver="full"), LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1)
    )
    fisher.fit(pixels[:70].reshape(420, -1), np.repeat(np.arange(70), 6))
    found = fisher.transform(pixels[70:].reshape(180, -1)).reshape(30, 6, -1)
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    accuracy = np.mean([verification_accuracy(found, seed) for seed in range(3)])
    assert accuracy > 0.72  # 0.78
    assert accuracy > np.mean([verification_accuracy(pixels[70:], seed) for seed in range(3)]) + 0.05


BAD = {"people": 0, "photos": 0, "size": 8, "seed": -1}


@pytest.mark.parametrize("bad", [*BAD.items(), ("size", 10**6), ("people", 10**12), ("seed", 2**70)])
def test_impossible_numbers_are_user_errors(bad: tuple[str, int], tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"people": 1, "photos": 1, "size": 64, "seed": 0} | dict([bad])
    with pytest.raises(UserError, match=rf"^{bad[0]}: {bad[1]}\b"):
        draw_set(tmp_path / "out", **numbers)
    assert not (tmp_path / "out").exists()


def test_sets_are_sound_and_those_of_two_seeds_disjoint(tmp_path: Path) -> None:
    train = draw_set(tmp_path / "train", 4, 3, size=48)
    test = draw_set(tmp_path / "test.set", 2, 3, size=48, seed=1)
    assert verify(tmp_path / "train") == []
    assert train.manifest.identities == {f"drawn-0-{number:05d}": 3 for number in range(4)}
    assert train.manifest.provenance["content"] == "drawn people, no real person"
    assert not set(train.identities) & set(test.identities)
    with pytest.raises(UserError, match="finished"):
        draw_set(tmp_path / "train", 4, 3, size=48)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_drawing_resumes_and_the_bytes_do_not_depend_on_the_processes(tmp_path: Path) -> None:
    killed, people = tmp_path / "killed" / "out", 60
    _draw_killed(killed, people)
    draw_small(killed, 3, people)
    draw_small(tmp_path / "whole" / "out", 1, people)
    assert contents(killed) == contents(tmp_path / "whole" / "out")


def _draw_killed(out: Path, people: int) -> None:
    """SIGKILL once two shards are finished."""
    process = subprocess.Popen([sys.executable, draw_in_small_shards.__file__, out, "1", str(people)])
    deadline = time.monotonic() + 90
    while len(list(out.glob("*.tar"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, "it ended or stalled before the kill"
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (out / "manifest.json").exists()


def test_a_contact_sheet_shows_all_sets(tmp_path: Path) -> None:
    from PIL import Image

    draw_set(tmp_path / "one", 4, 3, size=48)
    contact_sheet([tmp_path / "one"] * 2, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width == 2 * 6 * 96 + 6 and sheet.height > 9 * 96
        left, right = np.asarray(sheet)[:, : 6 * 96], np.asarray(sheet)[:, 6 * 96 + 6 :]
    assert np.array_equal(left, right) and left.std() > 20


def test_sampling_draws_each_face_at_most_once(tmp_path: Path) -> None:
    shards = draw_set(tmp_path / "one", 3, 3, size=48)
    drawn = [face.key for face in sample_faces(shards, 5, 0)]
    assert len(set(drawn)) == 5 and drawn == [face.key for face in sample_faces(shards, 5, 0)]
    assert len(sample_faces(shards, 99, 0)) == 9


def test_a_contact_sheet_needs_a_set(tmp_path: Path) -> None:
    for sets in ([], [tmp_path / "missing"]):
        with pytest.raises(UserError):
            contact_sheet(sets, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
