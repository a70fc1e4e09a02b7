"""Enrolling and naming drawn people, as on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparface import cli
from sparface.errors import UserError
from sparface.faces import draw_set
from sparface.gallery import known
from sparface.gallery.enrol import enrol
from sparface.gallery.identify import Answer, NoAnswer, identify

ALMOST_EQUAL = 0.999999
"""An untrained recognizer takes everybody for nearly the same person."""


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, photos: Path, recognizer: Path) -> Path:
    path = tmp_path_factory.mktemp("gallery") / "people.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path.parent / "cache"))
        done = enrol(photos, recognizer, path, threshold=ALMOST_EQUAL)
    assert done.gallery.people == ["Ann", "Bob", "Cid"] and len(done.gallery.sources) == 6
    assert done.skipped == [("Cid/wall.png", "no face found")] and done.absent == []
    assert "3 people enrolled with 6 photos" in str(done) and "skipped Cid/wall.png" in str(done)
    return path


def test_the_enrolled_are_named_and_others_are_not(
    gallery: Path, photos: Path, recognizer: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.png"
    Image.open(photos / "Ann/1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(stranger)
    paths = [photos / "Bob/2.png", stranger, photos / "Cid/wall.png", tmp_path / "none.png"]
    named, unknown, wall, missing = identify(paths, gallery, recognizer=recognizer)
    assert isinstance(named, Answer) and named.name == "Bob" and named.score == pytest.approx(1, abs=1e-5)
    assert isinstance(unknown, Answer) and unknown.name is None and unknown.score < ALMOST_EQUAL
    assert "unknown (nearest" in str(unknown)
    assert isinstance(wall, NoAnswer) and str(wall).startswith(f"{paths[2]}: no face found; if it is a tight")
    assert isinstance(missing, NoAnswer) and "missing" in missing.reason


def test_every_face_of_a_photo_is_named(
    gallery: Path, photos: Path, recognizer: Path, tmp_path: Path
) -> None:
    both = Image.new("RGB", (330, 170), (120, 120, 120))
    both.paste(Image.open(photos / "Cid/1.png"), (5, 5))
    both.paste(Image.open(photos / "Ann/1.png"), (165, 5))
    both.save(tmp_path / "both.png")
    answers = list(identify([tmp_path / "both.png"], gallery, recognizer=recognizer))
    found = [answer.nearest for answer in answers if isinstance(answer, Answer)]
    assert found == ["Cid", "Ann"] and all("face at" in str(answer) for answer in answers)


def test_only_its_own_recognizer_is_used(gallery: Path, photos: Path, tmp_path: Path) -> None:
    photo = photos / "Bob/2.png"
    with pytest.raises(UserError, match="which is not known here; name it with --checkpoint"):
        list(identify([photo], gallery))
    import torch

    from sparface.models.recognizer import RecognizerConfig, build_recognizer

    other = tmp_path / "other.pt"
    torch.save(build_recognizer(RecognizerConfig()).backbone.state_dict(), other)
    with pytest.raises(UserError, match=r"other.pt: is not the recognizer that .* was made with"):
        list(identify([photo], gallery, recognizer=other))


def test_the_command_lines(
    photos: Path, recognizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "people.safetensors")
    words = ["enrol", str(photos), "--checkpoint", str(recognizer), "--out", out]
    assert cli.main(words) == 2
    assert "3 people are too few to tell strangers from" in capsys.readouterr().err
    draw_set(tmp_path / "others", 4, 2, size=160, seed=5)
    assert cli.main([*words, "--calibrate", str(tmp_path / "others")]) == 0
    assert "0.01 of 8 faces of 4 other people would be given a name" in capsys.readouterr().out
    assert cli.main(["identify", str(photos / "Ann/1.png"), "--gallery", out]) == 0  # the recognizer is known
    assert capsys.readouterr().out == f"{photos / 'Ann/1.png'}: Ann (1.000)\n"
    assert cli.main(words) == 2
    assert "already exists" in capsys.readouterr().err


def test_what_is_remembered_is_checked(tmp_path: Path) -> None:
    assert known.find("ab" * 32) is None
    known.note("ab" * 32, tmp_path / "weights.pt")
    known.note("cd" * 32, tmp_path / "others.pt")
    assert known.find("ab" * 32) == tmp_path / "weights.pt"
    known.known_file().write_text('{"ab": 3}')
    assert known.find("ab") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 2.0}, "--threshold: 2.0 is not allowed"),
        ({"fpir": 0.0}, "--fpir: 0.0 is not allowed"),
        ({"threshold": 0.5, "calibrate": Path("x")}, "either --threshold or --calibrate"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        enrol(tmp_path, tmp_path, tmp_path / "x.safetensors", **options)  # type: ignore[arg-type]


def test_photos_without_any_face(recognizer: Path, tmp_path: Path) -> None:
    (tmp_path / "photos/Wall").mkdir(parents=True)
    Image.fromarray(np.full((80, 80, 3), 90, np.uint8)).save(tmp_path / "photos/Wall/1.png")
    with pytest.raises(UserError, match=r"no photo could be enrolled \(no face found\); .*--already-cropped"):
        enrol(tmp_path / "photos", recognizer, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_photos_are_enrolled_with_drawn_covers_too(
    photos: Path, recognizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "people.safetensors"
    done = enrol(photos, recognizer, out, threshold=0.5, covers="random")
    assert done.gallery.covers == ["", "random"] * 6
    assert done.gallery.sources[:3] == ["Ann/1.png", "Ann/1.png", "Ann/2.png"]
    assert "6 photos, each also with drawn covers: random" in str(done)
    (answer,) = identify([photos / "Bob/2.png"], out, recognizer=recognizer)
    assert isinstance(answer, Answer) and answer.name == "Bob"
    with pytest.raises(UserError, match="sunglasses is drawn on faces aligned to the template arcface"):
        enrol(photos, recognizer, tmp_path / "worn.safetensors", threshold=0.5, covers="sunglasses")
