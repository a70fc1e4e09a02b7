"""Listing photos, their keys, and opening what may not be a photo at all."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photo_folders import png_header
from PIL import Image

from sparface.errors import UserError
from sparface.faces.photos import BadPhoto, Photo, fingerprint, keys, list_photos, open_photo
from sparface.shards.format import is_key


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (30, 20), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100).save(path, **options)
    return path


def test_photos_of_a_folder_are_sorted_and_labelled_by_its_folders(tmp_path: Path) -> None:
    for name in ("bo/2.png", "bo/1.png", "ann/sub/x.png", "ann/.hidden.png", ".git/z.png", "pairs.png"):
        save(tmp_path / name)
    found = [(photo.identity, photo.source) for photo in list_photos(tmp_path)]
    assert found == [("ann", "ann/sub/x.png"), ("bo", "bo/1.png"), ("bo", "bo/2.png")]


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside" / "secret.png")
    root = tmp_path / "photos"
    save(root / "ann" / "1.png")
    (root / "ann" / "2.png").symlink_to(outside)
    (root / "ann" / "3.png").symlink_to(root / "ann" / "1.png")
    (root / "eve").symlink_to(outside.parent)
    problems = {photo.source: photo.problem for photo in list_photos(root)}
    refused = "points outside the photo folder"
    assert problems == {"ann/1.png": "", "ann/2.png": refused, "ann/3.png": "", "eve": refused}


def test_a_csv_lists_photos_relative_to_itself(tmp_path: Path) -> None:
    save(tmp_path / "scans" / "b.png")
    save(tmp_path / "scans" / "a.png")
    table = tmp_path / "photos.csv"
    table.write_text("identity,path,note\nzoe,scans/a.png,x\nann,scans/b.png,y\nann,../c.png,z\n")
    found = [(photo.identity, photo.source, bool(photo.problem)) for photo in list_photos(table)]
    assert found == [("ann", "../c.png", True), ("ann", "scans/b.png", False), ("zoe", "scans/a.png", False)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("file,identity\na.png,x\n", "no column path"),
        ("path,identity\na.png,\n", "line 2"),
        ("path,identity\na.png,x\na.png,y\n", "listed twice"),
        ("path,identity\n", "no photos"),
        (b"path,identity\n\xff\xfe,x\n", "not a readable CSV"),
    ],
)
def test_a_bad_csv_is_named_with_what_is_wrong(tmp_path: Path, content: str | bytes, says: str) -> None:
    table = tmp_path / "photos.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=says) as error:
        list_photos(table)
    assert str(table) in str(error.value)


def test_missing_and_empty_folders_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        list_photos(tmp_path / "missing")
    with pytest.raises(UserError, match="no photos"):
        list_photos(tmp_path)


sources = st.lists(st.text("aé./ _-\n", min_size=1, max_size=12), unique=True, max_size=12)


@given(sources)
def test_keys_are_valid_and_unique_whatever_the_names(names: list[str]) -> None:
    made = keys([Photo(Path(name), f"x/{name}", "x") for name in names])
    assert len(set(made)) == len(names)
    assert all(is_key(key) for key in made)


def test_keys_stay_readable_where_they_can() -> None:
    def photo(source: str) -> Photo:
        return Photo(Path(source), source, "x")

    assert keys([photo("AJ_Cook/AJ_Cook_0001.jpg")]) == ["AJ_Cook_AJ_Cook_0001"]
    long = keys([photo("a" * 300 + ".jpg"), photo("a" * 301 + ".jpg")])
    assert len(set(long)) == 2 and all(is_key(key) for key in long)


def test_the_fingerprint_follows_the_photos(tmp_path: Path) -> None:
    save(tmp_path / "ann" / "1.png")
    before = fingerprint(list_photos(tmp_path))
    assert fingerprint(list_photos(tmp_path)) == before
    save(tmp_path / "ann" / "1.png", size=(300, 200))
    assert fingerprint(list_photos(tmp_path)) != before


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_opens_as_rgb(tmp_path: Path, mode: str) -> None:
    image = open_photo(save(tmp_path / "x.tif", mode))
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 257 * 90, np.uint16)).save(tmp_path / "x.png")
    assert (open_photo(tmp_path / "x.png") == 90).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_photo(save(tmp_path / "x.jpg", exif=exif)).shape == (30, 20, 3)


def truncated_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, "JPEG")
    return buffer.getvalue()[:3000]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.jpg", b"Dear diary", "not an image"),
        ("empty.jpg", b"", "not an image"),
        ("vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        ("cut.jpg", truncated_jpeg(), "truncated image"),
        ("huge.png", png_header(60_000, 60_000), "too large"),
        ("large.png", png_header(8_000, 8_000), "too large: 8000x8000 pixels"),
        ("hollow.png", png_header(100, 100), "image"),
    ],
)
def test_what_is_no_good_photo_has_a_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadPhoto, match=reason) as problem:
        open_photo(tmp_path / name)
    assert "\n" not in str(problem.value)


def test_missing_files_and_folders_have_a_reason(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.jpg"):
        with pytest.raises(BadPhoto, match="missing"):
            open_photo(path)
