"""Shard sets read from a real HTTP server: the same batches, fetched once, checked, in a bounded cache."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from toy_sets import contents, edit_manifest, take, write_set

from sparface.errors import UserError
from sparface.shards import FaceStream, Loader, ShardSet
from sparface.shards.remote import Remote, cache_folder


class Handler(SimpleHTTPRequestHandler):
    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path.rpartition("/")[2]] += 1
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_set(tmp_path / "served" / "toy")
    return tmp_path / "served" / "toy"


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    Handler.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/toy"
    server.shutdown()
    thread.join()
    server.server_close()


def batches(shard_set: ShardSet, workers: int = 0) -> list[Any]:
    stream = FaceStream(shard_set, identities_per_batch=4, images_per_identity=3, seed=3, window=3)
    return take(iter(Loader(stream, workers=workers)), 12)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder_and_shards_come_once(folder: Path, url: str, workers: int) -> None:
    local, remote = ShardSet.open(folder), ShardSet.open(url)
    assert remote.digest == local.digest
    for here, there in zip(batches(local), batches(remote, workers), strict=True):
        assert here.keys == there.keys and torch.equal(here.images, there.images)
    batches(ShardSet.open(url))
    tars = {path.name for path in folder.glob("*.tar")}
    assert {name: count for name, count in Handler.asked.items() if name in tars} == dict.fromkeys(tars, 1)
    kept = contents(remote.folder)
    assert {name: kept[name] for name in contents(folder)} == contents(folder)


def test_other_openers_read_too(folder: Path) -> None:
    for url in (f"file://{folder}", f"pipe:cat {folder}/{{}}", f"local://{folder}"):
        assert ShardSet.open(url).digest == ShardSet.open(folder).digest
        assert len(list(ShardSet.open(url).faces())) == 51


@pytest.mark.parametrize("change", ["altered", "shorter", "longer", "missing"])
def test_a_shard_that_is_not_the_manifests_is_refused_and_not_kept(
    folder: Path, url: str, change: str
) -> None:
    path = folder / "toy-000000.tar"
    data = path.read_bytes()
    changed = {"altered": data[:-1] + b"x", "shorter": data[:-512], "longer": data + bytes(1 << 22)}
    path.unlink()
    if change in changed:
        path.write_bytes(changed[change])
    remote = ShardSet.open(url)
    with pytest.raises(UserError, match=r"toy-000000\.tar: "):
        remote.shard(0)
    assert not list(remote.folder.glob("toy-000000.tar*"))
    assert len(remote.shard(1)) > 0


def test_a_manifest_cannot_name_a_file_elsewhere(folder: Path, url: str) -> None:
    edit_manifest(folder, lambda m: m["shards"][0].update(file="../../escaped.tar"))
    with pytest.raises(UserError, match="has a file other than"):
        ShardSet.open(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/toy", "nosuch://toy", "file:///nowhere/toy"])
def test_what_cannot_be_reached_is_a_user_error(folder: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        ShardSet.open(url)


def test_a_set_that_changes_at_its_url_is_another_set(folder: Path, url: str) -> None:
    before = ShardSet.open(url)
    edit_manifest(folder, lambda m: m.update(licence="other"))
    after = ShardSet.open(url)
    assert before.folder != after.folder and after.manifest.licence == "other"
    assert after.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def test_the_cache_is_bounded_and_keeps_what_was_asked_for_last(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(folder).manifest.shards
    limit = sum(shard.bytes for shard in shards[:3])
    monkeypatch.setenv("SPARFACE_CACHE_GB", str((limit + 0.5) / 1e9))
    remote = Remote(url)
    for shard in shards:
        remote.fetch(shard)
        remote.fetch(shards[0])
        assert sum(path.stat().st_size for path in cache_folder().glob("*/*.tar")) <= limit
        assert (remote.folder / shards[0].file).is_file() and (remote.folder / shard.file).is_file()


def test_the_cache_is_where_and_as_large_as_the_user_says(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = ShardSet.open(folder).manifest.shards
    monkeypatch.setenv("SPARFACE_CACHE", str(tmp_path / "scratch"))
    monkeypatch.setenv("SPARFACE_CACHE_GB", str(sum(info.bytes for info in infos[:4]) / 1e9))
    shards = ShardSet.open(url)
    assert shards.folder.parent == tmp_path / "scratch"
    assert len(list(shards.faces())) == 51
    assert 1 <= len(list((tmp_path / "scratch").glob("*/*.tar"))) <= 4 < len(infos)
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("SPARFACE_CACHE_GB", wrong)
        with pytest.raises(UserError, match="give a number of gigabytes"):
            ShardSet.open(url)


def test_a_cache_with_room_is_looked_at_once(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    shrink: Any = Remote._shrink

    def look(self: Remote, wanted: int) -> int:
        looks.append(wanted)
        size: int = shrink(self, wanted)
        return size

    monkeypatch.setattr(Remote, "_shrink", look)
    assert len(list(ShardSet.open(url).faces())) == 51
    assert len(looks) == 1


def test_a_cache_that_cannot_be_locked_is_said_in_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    remote = ShardSet.open(url)
    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(UserError, match=r"toy-000000\.lock: cannot be locked \(No locks available\)"):
        remote.shard(0)
