"""Alignment on real photos, bad photos, and when it is killed."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import align_in_small_shards
import numpy as np
import psutil
import pytest
from align_in_small_shards import align_small
from photo_folders import png_header, real_photos
from PIL import Image

from sparface.errors import UserError
from sparface.faces import Aligner, Alignment, BadPhoto, align, list_photos, open_photo
from sparface.faces.templates import arcface_template, similarity
from sparface.shards import Face, ShardSet, ShardSetWriter, verify


@pytest.fixture(scope="module")
def lfw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 photos of 8 people."""
    return real_photos(tmp_path_factory.mktemp("lfw"), "lfw/images", 8, 4)


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner(Alignment(size=112))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def faceless(path: Path, seed: int = 0) -> Path:
    """A photo of nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(90, 160, (160, 200, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_real_photos_become_faces_on_the_template(lfw: Path, tmp_path: Path) -> None:
    report = align(lfw, tmp_path / "out", size=112, workers=1)
    assert (report.photos, report.faces, report.identities, report.single) == (32, 32, 8, 0)
    assert report.methods == {"landmarks": 32} and not report.rejected
    assert verify(tmp_path / "out") == []
    for face in ShardSet.open(tmp_path / "out").faces():
        points = np.array(face.meta["landmarks"])
        matrix = similarity(points, arcface_template(112))
        placed = points @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(placed - arcface_template(112)).max() < 20
        assert face.meta["score"] > 0.9 and (lfw / face.source).is_file()
        assert face.identity == face.source.split("/")[0]


def test_faces_found_again_in_the_face_lie_on_the_template(lfw: Path, aligner: Aligner) -> None:
    cropped = Aligner(Alignment(size=112, already_cropped=True))
    again = [cropped.align(aligner.align(open_photo(photo.path))[0])[1] for photo in list_photos(lfw)[:12]]
    found = np.array([meta["landmarks"] for meta in again if meta["method"] == "landmarks"])
    assert len(found) >= 11
    assert np.abs(found.mean(0) - arcface_template(112)).max() < 3


def test_the_result_does_not_depend_on_the_workers(lfw: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        align(lfw, tmp_path / str(workers) / "out", size=64, workers=workers)
    assert contents(tmp_path / "1" / "out") == contents(tmp_path / "2" / "out")


def test_a_killed_alignment_goes_on_and_ends_the_same(lfw: Path, tmp_path: Path) -> None:
    faceless(lfw / "Aaa_Nobody" / "1.png")
    try:
        _align_killed(lfw, tmp_path / "killed" / "out")
        align_small(lfw, tmp_path / "killed" / "out", workers=1)
        align_small(lfw, tmp_path / "whole" / "out", workers=1)
    finally:
        shutil.rmtree(lfw / "Aaa_Nobody")
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")
    assert "Aaa_Nobody/1.png" in (tmp_path / "killed" / "out" / "rejected.csv").read_text()


def _align_killed(photos: Path, out: Path) -> None:
    """SIGKILL once two shards are finished; the worker processes must end by themselves."""
    process = subprocess.Popen([sys.executable, align_in_small_shards.__file__, photos, out, "2"])
    deadline = time.monotonic() + 90
    while len(list(out.glob("*.tar"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, "it ended or stalled before the kill"
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    assert workers and not psutil.wait_procs(workers, timeout=30)[1]


def test_bad_photos_are_named_with_a_reason_and_the_rest_goes_on(lfw: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    person = shutil.copytree(next(path for path in sorted(lfw.iterdir())), photos / "ann")
    whole = next(person.iterdir())
    (person / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    (person / "huge.png").write_bytes(png_header(60_000, 60_000))
    (person / "text.jpg").write_text("Dear diary")
    Image.new("RGB", (60_000, 1)).save(person / "thin.png")
    (person / "away.png").symlink_to(faceless(tmp_path / "away.png"))
    faceless(photos / "nobody" / "1.png")
    shutil.copytree(person, photos / "one").joinpath("text.jpg").unlink()
    for path in sorted((photos / "one").glob("*.jpg"))[1:]:
        path.unlink()
    report = align(photos, tmp_path / "out", size=64, workers=1)
    assert (report.faces, report.identities, report.single) == (5, 2, 1)
    rows = list(csv.DictReader((tmp_path / "out" / "rejected.csv").open()))
    reasons = {row["path"]: row["reason"].split(" ")[0] for row in rows}
    assert reasons == {
        "ann/cut.jpg": "truncated",
        "ann/away.png": "link",
        "ann/huge.png": "too",
        "ann/thin.png": "too",
        "ann/text.jpg": "not",
        "nobody/1.png": "no",
        "one/huge.png": "too",
        "one/thin.png": "too",
        "one/away.png": "no",
    }
    text = str(report)
    assert "link leaves the photo folder; use --follow-links to follow it" in text
    assert "9 rejected" in text and "1 identity has only one face" in text and "no face found" in text


def test_no_face_at_all_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    faceless(tmp_path / "photos" / "nobody" / "1.png")
    with pytest.raises(UserError, match="no face found in 1 photos"):
        align(tmp_path / "photos", tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_an_error_after_a_finished_shard_keeps_it(
    lfw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ShardSetWriter.add

    def add(self: ShardSetWriter, face: Face, *more: Any) -> None:
        if face.identity == list_photos(lfw)[-1].identity:
            raise UserError("the disk is full")
        written(self, face, *more)

    monkeypatch.setattr(ShardSetWriter, "add", add)
    with pytest.raises(UserError, match="disk is full"):
        align_small(lfw, tmp_path / "out", workers=1)
    assert len(list((tmp_path / "out").glob("*.tar"))) >= 2
    monkeypatch.undo()
    align_small(lfw, tmp_path / "out", workers=1)
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("photos", ["missing", "."])
def test_missing_and_empty_folders_are_errors_and_leave_nothing(tmp_path: Path, photos: str) -> None:
    with pytest.raises(UserError, match=r"no such folder|no photos"):
        align(tmp_path / photos, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_a_finished_set_is_not_overwritten_unasked(lfw: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(next(path for path in sorted(lfw.iterdir())), tmp_path / "photos" / "ann").parent
    align(photos, tmp_path / "out", size=64, workers=1)
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="finished"):
        align(photos, tmp_path / "out", size=64, workers=1)
    assert contents(tmp_path / "out") == before
    align(photos, tmp_path / "out", size=80, workers=1, overwrite=True)
    assert ShardSet.open(tmp_path / "out").manifest.size == (80, 80)


@pytest.mark.parametrize(("setting", "value"), [("size", 4), ("template", "oval"), ("encoding", "gif")])
def test_a_bad_setting_is_named(lfw: Path, tmp_path: Path, setting: str, value: object) -> None:
    with pytest.raises(UserError, match=setting):
        align(lfw, tmp_path / "out", workers=1, **{setting: value})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_photo_without_a_face_is_left_out_or_cropped_at_its_centre(
    tmp_path: Path, aligner: Aligner
) -> None:
    image = open_photo(faceless(tmp_path / "x.png"))
    with pytest.raises(BadPhoto, match="no face found"):
        aligner.align(image)
    face, meta = Aligner(Alignment(size=112, on_no_face="center")).align(image)
    assert face.shape == (112, 112, 3) and meta == {"method": "center", "found": 0}


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3), (20, 20), (25, 1000)])
def test_odd_shapes_are_no_problem(aligner: Aligner, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 120, np.uint8)
    with pytest.raises(BadPhoto, match="no face found"):
        aligner.align(image)
    face, meta = Aligner(Alignment(size=64, already_cropped=True)).align(image)
    assert meta["method"] == "center" and (face == 120).all()


def test_tight_grey_crops_are_found_and_put_in_the_same_place(tmp_path: Path) -> None:
    photos = real_photos(tmp_path / "ar", "ar", 2, 13)
    report = align(photos, tmp_path / "out", size=112, already_cropped=True, workers=1)
    assert report.faces == 26 and report.methods["landmarks"] >= 25
    mean = np.mean([face.image for face in ShardSet.open(tmp_path / "out").faces()], 0)[..., 0]
    (left, top), (right, _) = arcface_template(112)[:2].round().astype(int)
    eyes, brow_bone = mean[top, [left, right]].mean(), mean[top - 4 : top + 5, (left + right) // 2].mean()
    assert eyes < brow_bone - 15  # eyes are darker than what is between them


def test_the_box_template_is_a_margin_around_the_face(lfw: Path) -> None:
    photo = open_photo(list_photos(lfw)[0].path)
    face, meta = Aligner(Alignment(size=96, template="box")).align(photo)
    left, top, right, bottom = meta["box"]
    side = np.sqrt((right - left) * (bottom - top)) * (1 + 20 / 160)
    x, y = (left + right) / 2, (top + bottom) / 2
    window = (x + 0.5 - side / 2, y + 0.5 - side / 2, x + 0.5 + side / 2, y + 0.5 + side / 2)
    expected = Image.fromarray(photo).resize((96, 96), Image.Resampling.BICUBIC, window)
    assert meta["method"] == "box" and np.abs(face.astype(int) - np.asarray(expected)).mean() < 4


def test_a_large_photo_gives_the_same_face_as_a_small_one(lfw: Path, aligner: Aligner) -> None:
    """Detection runs on a shrunk photo; its landmarks must come back in the photo's pixels."""
    for photo in list_photos(lfw)[:3]:
        small = Image.fromarray(open_photo(photo.path))
        large = small.resize((small.width * 8, small.height * 8), Image.Resampling.BICUBIC)
        one, other = (np.array(aligner.align(np.asarray(x))[1]["landmarks"]) for x in (small, large))
        eyes_apart = np.linalg.norm(one[1] - one[0])
        assert np.abs((other + 0.5) / 8 - 0.5 - one).max() < 0.15 * eyes_apart
