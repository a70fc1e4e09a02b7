"""Listing photos, their keys, and opening what may not be a photo at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photo_folders import png_header
from PIL import Image, ImageOps

from sparface.errors import UserError
from sparface.faces.photos import LEAVES, BadPhoto, Photo, fingerprint, keys, list_photos, open_photo
from sparface.shards.format import is_key


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (30, 20), **options: Any) -> Path:
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
    refused = "link leaves the photo folder; use --follow-links to follow it"
    assert problems == {"ann/1.png": "", "ann/2.png": refused, "ann/3.png": "", "eve": refused}
    found = list_photos(root, follow_links=True)
    assert [photo.source for photo in found if not photo.problem] == [
        "ann/1.png", "ann/2.png", "ann/3.png", "eve/secret.png"
    ]  # fmt: skip
    assert all(open_photo(photo.path).shape == (20, 30, 3) for photo in found)


def test_links_in_a_circle_are_refused_once(tmp_path: Path) -> None:
    save(tmp_path / "ann" / "1.png")
    save(tmp_path / "bo" / "2.png")
    (tmp_path / "ann" / "up").symlink_to(tmp_path)
    (tmp_path / "ann" / "self").symlink_to(tmp_path / "ann")
    (tmp_path / "ann" / "bo").symlink_to(tmp_path / "bo")
    (tmp_path / "bo" / "ann").symlink_to(tmp_path / "ann")
    (tmp_path / "bo" / "loop").symlink_to("loop")
    for follow in (False, True):
        problems = {photo.source: photo.problem for photo in list_photos(tmp_path, follow_links=follow)}
        assert [source for source, problem in problems.items() if not problem] == [
            "ann/1.png", "ann/bo/2.png", "ann/bo/loop", "bo/2.png", "bo/ann/1.png", "bo/loop"
        ]  # fmt: skip
        assert problems["ann/up"] == problems["ann/self"] == "link to a folder that contains it"
    with pytest.raises(BadPhoto, match="missing"):
        open_photo(tmp_path / "bo" / "loop")


def test_a_csv_may_name_photos_behind_links_when_asked(tmp_path: Path) -> None:
    save(tmp_path / "far" / "a.png")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "here" / "b.png").symlink_to(tmp_path / "far" / "a.png")
    table = tmp_path / "here" / "photos.csv"
    table.write_text("path,identity\nlinked/a.png,ann\nb.png,bo\n")
    assert {photo.problem for photo in list_photos(table)} == {LEAVES}
    assert [photo.problem for photo in list_photos(table, follow_links=True)] == ["", ""]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "ann" / "1.png")
    save(tmp_path / "bo" / "2.png")
    (tmp_path / "bo").chmod(0)
    if os.access(tmp_path / "bo", os.R_OK):  # root may do anything
        scandir = os.scandir

        def refuse(folder: Path) -> Any:
            if Path(folder).name == "bo":
                raise PermissionError(errno.EACCES, "Permission denied", str(folder))
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"bo: cannot be listed \(Permission denied\); make it readable"):
        list_photos(tmp_path)
    (tmp_path / "bo").chmod(0o755)


def test_a_person_with_an_impossible_name_is_refused_alone(tmp_path: Path) -> None:
    """The writer of a shard set would end at it."""
    save(tmp_path / "ann" / "1.png")
    save(tmp_path / ("x" * 220) / "2.png")
    save(tmp_path / "a\x1bb" / "3.png")
    assert [bool(photo.problem) for photo in list_photos(tmp_path)] == [True, False, True]


def test_listing_asks_the_file_system_about_links_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stat for each of millions of photos takes hours on a network file system."""
    for number in range(40):
        save(tmp_path / "ann" / f"{number}.png", size=(2, 2))
    (tmp_path / "ann" / "link.png").symlink_to("0.png")
    asked: list[Any] = []
    for name in ("stat", "lstat", "readlink"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, *a, real=real, **k: (asked.append(path), real(path, *a, **k))[1]
        )
    listed = list_photos(tmp_path)
    assert len(listed) == 41 and len(asked) < 60 + 3 * len(tmp_path.parts)
    asked.clear()
    fingerprint(listed)
    assert len(asked) == 41


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
        ("path,identity\n.,x\n", "line 2: '.' is not a valid path"),
        ("path,identity\na/..,x\n", "line 2: 'a/..' is not a valid path"),
        (b"path,identity\n\xff\xfe,x\n", "is not a valid CSV"),
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
    return jpeg()[:3000]


def jpeg(exif: bytes = b"", size: tuple[int, int] = (200, 200)) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def broken_exif() -> list[bytes]:
    """EXIF whose orientation is fine to look at and that fails when it is written back, and worse."""
    entries = {
        "a rational of one number": struct.pack("<HHIII", 0x0112, 5, 1, 6, 0),
        "a text for the orientation": struct.pack("<HHI4s", 0x0112, 2, 4, b"abc\0"),
        "a float": struct.pack("<HHIf", 0x0112, 11, 1, 6.0),
        "two orientations": struct.pack("<HHIHH", 0x0112, 3, 2, 6, 6),
        "an undefined tag of kind 0": struct.pack("<HHII", 0x0112, 0, 1, 6),
        "a pointer outside": struct.pack("<HHII", 0x0112, 3, 60_000, 1 << 31),
    }
    right = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return [
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags) // 12) + tags + b"\0\0\0\0"
        for entry in entries.values()
        for tags in (entry, right + entry.replace(b"\x12\x01", b"\x00\x01", 1), entry + right)
    ]


@pytest.mark.parametrize("exif", broken_exif())
def test_broken_exif_is_no_more_than_a_bad_photo(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "x.jpg"
    for cut in (len(exif), 40, 20, 12):
        path.write_bytes(jpeg(exif[:cut]))
        with contextlib.suppress(BadPhoto):
            assert open_photo(path).shape == (200, 200, 3)


@pytest.mark.parametrize(
    "error", [struct.error("unpack"), TypeError("tuple"), MemoryError(), RecursionError("deep")]
)
def test_whatever_reading_exif_raises_is_a_bad_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (tmp_path / "x.jpg").write_bytes(jpeg())
    monkeypatch.setattr(ImageOps, "exif_transpose", raises(error))
    with pytest.raises(BadPhoto, match=r"broken image \(.+\)"):
        open_photo(tmp_path / "x.jpg")


def raises(error: Exception) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.jpg", b"Dear diary", "not an image"),
        ("empty.jpg", b"", "not an image"),
        ("vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        ("cut.jpg", truncated_jpeg(), "truncated image"),
        ("huge.png", png_header(60_000, 60_000), "too large"),
        ("large.png", png_header(8_000, 8_000), "too large: 8000x8000 pixels"),
        ("thin.jpg", jpeg(size=(60_000, 1)), "too large: 60000x1 pixels, the limit per side is 10,000"),
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
