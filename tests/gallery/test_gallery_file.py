"""The gallery's file: what is written is read, and what somebody else wrote is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from sparface.errors import UserError
from sparface.gallery import file
from sparface.gallery.file import Gallery

EMBEDDINGS = np.eye(3, 4, dtype=np.float32)
ABOUT: dict[str, Any] = {
    "version": 2,
    "people": ["Ann", "Bob"],
    "person": [0, 1, 1],
    "sources": ["Ann/1.png", "Bob/1.png", "Bob/2.png"],
    "covers": ["", "", "scarf"],
    "recognizer": {"name": "facenet.pt", "digest": "ab" * 32},
    "size": 112,
    "template": "arcface",
    "threshold": 0.5,
    "basis": "given",
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    person = np.array([0, 1, 1])
    written = Gallery(
        ["Ann", "Bob"], EMBEDDINGS, person, ABOUT["sources"], ABOUT["covers"],
        "x.pt", "ab" * 32, 112, "box", 0.4, "why",
    )  # fmt: skip
    written.save(tmp_path / "gallery.safetensors")
    found = file.load(tmp_path / "gallery.safetensors")
    np.testing.assert_array_equal(found.embeddings, written.embeddings)
    np.testing.assert_array_equal(found.person, person)
    for name in (
        "people",
        "sources",
        "covers",
        "recognizer",
        "digest",
        "size",
        "template",
        "threshold",
        "basis",
    ):
        assert getattr(found, name) == getattr(written, name)


def write(path: Path, about: Any, embeddings: Any = EMBEDDINGS) -> Path:
    path.write_bytes(save({"embeddings": embeddings}, {"gallery": json.dumps(about)}))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"people": ["Ann", "Ann"]},
        {"people": ["Ann", "B\x1bb"]},
        {"people": ["Ann", ""]},
        {"people": "Ann"},
        {"person": [0, 1, 2]},
        {"person": [0, 0, 0]},
        {"person": [0, 1]},
        {"person": [0, 1, -1]},
        {"person": [0, 1, True]},
        {"sources": ["a", "b"]},
        {"covers": ["", ""]},
        {"covers": ["", "", "\x1b[2J"]},
        {"sources": ["a", "b", "c\n"]},
        {"recognizer": {"name": "x", "digest": "../../secret"}},
        {"recognizer": {"name": "\x1b[2J", "digest": "ab" * 32}},
        {"size": 1 << 40},
        {"template": "other"},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"threshold": None},
        {"basis": 3},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    file.load(write(tmp_path / "sound.safetensors", ABOUT))
    path = write(tmp_path / "bad.safetensors", ABOUT | change)
    with pytest.raises(UserError, match=r"bad.safetensors: is not a gallery") as error:
        file.load(path)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "embeddings",
    [
        2 * EMBEDDINGS,
        np.where(EMBEDDINGS > 0, np.nan, EMBEDDINGS).astype(np.float32),
        EMBEDDINGS[:2],
        EMBEDDINGS[:, :, None],
        EMBEDDINGS.astype(np.float64),
        np.zeros((0, 4), np.float32),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(embeddings: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its embeddings"):
        file.load(write(tmp_path / "bad.safetensors", ABOUT, embeddings))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    sound = write(tmp_path / "sound.safetensors", ABOUT).read_bytes()
    other = save({"weights": EMBEDDINGS})
    deep = b"[" * 100_000
    contents = [b"", b"\x80\x04N.", sound[:100], sound[:-1], b"\xff" * 64, other]
    contents.append(len(deep).to_bytes(8, "little") + deep)
    for data in contents:
        (tmp_path / "bad.safetensors").write_bytes(data)
        with pytest.raises(UserError, match="is not a gallery"):
            file.load(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        file.load(tmp_path / "none.safetensors")
