"""Writing shard sets: plain WebDataset out, the same bytes whatever happens in between."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from toy_sets import COUNTS, contents, face, faces, write_set, writer

from sparface.errors import UserError
from sparface.shards import Face, ShardSet, verify
from sparface.shards import writer as writing
from sparface.shards.journal import Journal


@pytest.mark.parametrize("encoding", ["png", "jpg", "webp", "npy"])
def test_faces_come_back(tmp_path: Path, encoding: str) -> None:
    shard_set = write_set(tmp_path / "set", encoding=encoding)
    assert verify(shard_set.folder) == []
    assert len(shard_set) == sum(COUNTS)
    assert shard_set.manifest.identities == {f"person {i}": n for i, n in enumerate(COUNTS)}
    for got, wanted in zip(shard_set.faces(), faces(), strict=True):
        assert (got.key, got.identity, got.source, got.meta) == (
            wanted.key,
            wanted.identity,
            wanted.source,
            wanted.meta,
        )
        tolerance = 3 if shard_set.manifest.lossy else 0
        assert np.abs(got.image.astype(int) - wanted.image).max() <= tolerance


@pytest.mark.parametrize("encoding", ["png", "npy"])
def test_plain_webdataset_reads_the_tars(tmp_path: Path, encoding: str) -> None:
    shard_set = write_set(tmp_path / "set", encoding=encoding)
    tars = [str(path) for path in sorted(shard_set.folder.glob("*.tar"))]
    decoded = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")
    samples = decoded.to_tuple("__key__", encoding, "json")
    for (key, image, info), wanted in zip(samples, faces(), strict=True):
        assert key == wanted.key
        assert (image == wanted.image).all()
        assert info == {
            "identity": wanted.identity,
            "label": shard_set.identities.index(wanted.identity),
            "source": wanted.source,
            **wanted.meta,
        }


def test_shards_close_at_identity_boundaries_and_split_long_identities(tmp_path: Path) -> None:
    shard_set = write_set(tmp_path / "set", counts=(4, 5, 3, 20, 2), shard_samples=6)
    runs = [info.runs.tolist() for info in shard_set.manifest.shards]
    assert runs == [[[0, 4], [1, 5]], [[2, 3], [3, 6]], [[3, 6]], [[3, 6]], [[3, 2], [4, 2]]]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first = write_set(tmp_path / "a")
    time.sleep(1.1)  # tar times have a resolution of one second
    second = write_set(tmp_path / "b")
    assert contents(first.folder) == contents(second.folder)
    assert first.digest == second.digest


def test_a_finished_set_is_only_replaced_on_demand(tmp_path: Path) -> None:
    before = contents(write_set(tmp_path / "set").folder)
    with pytest.raises(UserError, match="finished shard set; use --overwrite"):
        write_set(tmp_path / "set")
    assert contents(tmp_path / "set") == before
    write_set(tmp_path / "set", counts=(2, 2), overwrite=True)
    assert sorted(contents(tmp_path / "set")) == ["manifest.json", "toy-000000.tar"]
    write_set(tmp_path / "set", counts=(2, 2), overwrite=True, name="other")
    assert sorted(contents(tmp_path / "set")) == ["manifest.json", "other-000000.tar"]
    assert verify(tmp_path / "set") == []


def test_another_setting_does_not_resume(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "set") as shards:
        for one in faces():
            shards.add(one, progress=one.key)
        raise ZeroDivisionError
    for other in ({"encoding": "jpg"}, {"provenance": {"made by": "other"}}, {"shard_samples": 7}):
        with pytest.raises(UserError, match="other settings or provenance"):
            writer(tmp_path / "set", **other)
    with writer(tmp_path / "set", overwrite=True) as same:
        assert same.resumed is not None
        with pytest.raises(UserError, match="another process is writing to this folder"):
            writer(tmp_path / "set")
    with pytest.raises(UserError, match="finished shard set"):
        writer(tmp_path / "set")


def test_foreign_shards_and_empty_sets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "toy-000000.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"toy-000000\.tar: would be overwritten"):
        writer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["toy-000000.tar"]
    with pytest.raises(UserError, match="no faces were written"), writer(tmp_path / "empty"):
        pass
    assert list((tmp_path / "empty").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        writer(tmp_path / "file")


MINE = (
    "toy-2024.tar",
    "toy-2024-raw-photos.tar",
    "toy-notes.partial",
    "manifest.json.old.partial",
    "other-000000.tar",
)


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_the_user_survive(tmp_path: Path, overwrite: bool) -> None:
    """Whether a set is begun, resumed or overwritten, and whatever their names begin with."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in MINE:
        (folder / name).write_text("mine")
    with pytest.raises(RuntimeError), writer(folder, shard_samples=2) as shards:
        for number in range(5):
            shards.add(face(number, number // 2))
        raise RuntimeError
    with writer(folder, shard_samples=2, overwrite=overwrite) as shards:
        for number in range(4, 8):
            shards.add(face(number, number // 2))
    with writer(folder, quality=50, overwrite=True) as shards:
        shards.add(face(0, 0))
    assert {path.name for path in folder.iterdir()} == {"toy-000000.tar", "manifest.json", *MINE}
    assert all((folder / name).read_text() == "mine" for name in MINE)


def test_a_shard_that_no_list_names_is_not_replaced(tmp_path: Path) -> None:
    with writer(tmp_path) as shards:
        shards.add(face(0, 0))
    (tmp_path / "toy-000007.tar").write_text("mine")
    with pytest.raises(UserError, match=r"toy-000007\.tar: would be overwritten"):
        writer(tmp_path, overwrite=True)
    assert (tmp_path / "toy-000007.tar").read_text() == "mine"
    assert verify(tmp_path)[0].endswith("move or delete it") and len(ShardSet.open(tmp_path)) == 1


def test_a_companion_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "rejected.csv").write_text("mine")
    with pytest.raises(UserError, match=r"rejected\.csv: already exists; move it"):
        writer(tmp_path, companions=["rejected.csv"])
    assert [path.name for path in tmp_path.iterdir()] == ["rejected.csv"]


def test_a_writer_that_got_the_lock_late_leaves_a_finished_set_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one finishes between this one's first look and its lock."""
    lock = Journal

    def late(folder: Path) -> Journal:
        monkeypatch.setattr(writing, "Journal", lock)
        with writer(folder) as shards:
            shards.add(face(0, 0))
        return lock(folder)

    monkeypatch.setattr(writing, "Journal", late)
    with pytest.raises(UserError, match="finished shard set"):
        writer(tmp_path / "set")
    assert verify(tmp_path / "set") == []
    assert not (tmp_path / "set" / "unfinished.jsonl").exists()


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\)"):
        writer(tmp_path)


def _broken_faces() -> Iterator[tuple[Face, str]]:
    good = face(1, 1)
    for key in ("", "a.b", "../x", "a/b", "ü", "k" * 91):
        yield Face(key, good.image, "p", "s"), "must be 1 to 90 letters"
    yield face(0, 0), "is already in"
    yield face(7, 0), "is not consecutive; sort by identity"
    yield Face("a", good.image[:5], "p", "s"), "is not uint8"
    yield Face("a", good.image.astype(np.float32), "p", "s"), "is not uint8"
    yield Face("a", good.image, "", "s"), "printable"
    yield Face("a", good.image, "p\n", "s"), "printable"
    yield Face("a", good.image, "p", "s", {"label": 3}), "meta must not contain 'label'"
    yield Face("a", good.image, "p", "s", {"score": float("nan")}), "cannot be written as JSON"
    yield Face("a", good.image, "p", "caf\udce9.jpg"), "cannot be written as JSON"
    yield Face("a", good.image, "p", "s", {"score": object()}), "cannot be written as JSON"


@pytest.mark.parametrize(("bad", "message"), list(_broken_faces()))
def test_a_face_that_breaks_the_format_is_refused(tmp_path: Path, bad: Face, message: str) -> None:
    with writer(tmp_path / "set") as shards:
        shards.add(face(0, 0))
        shards.add(face(1, 1))
        with pytest.raises(UserError, match=message):
            shards.add(bad)
    assert [one.key for one in ShardSet.open(tmp_path / "set").faces()] == ["k00000", "k00001"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("name", "a/b"), ("size", (0, 5)), ("encoding", "bmp"), ("quality", 0), ("shard_samples", 0)],
)
def test_bad_settings(tmp_path: Path, setting: str, value: Any) -> None:
    with pytest.raises(UserError):
        writer(tmp_path / "set", **{setting: value})
    assert not (tmp_path / "set").exists()
