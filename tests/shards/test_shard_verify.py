"""What a broken or hostile shard set gets: one clear line."""

from __future__ import annotations

import json
import os
import re
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_sets import COUNTS, break_image, edit_manifest, replace_shard, retar, write_set

from sparface.cli import main
from sparface.errors import UserError
from sparface.faces import draw_set
from sparface.shards import Face, ShardSet, ShardSetWriter, damaged, describe, verify, write_subset
from sparface.shards.format import shard_file
from sparface.shards.manifest import Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set").folder


def the_problem(folder: Path) -> str:
    problems = verify(folder)
    assert len(problems) == 1, problems
    assert "\n" not in problems[0]
    return problems[0]


def test_a_sound_set_has_no_problems(folder: Path) -> None:
    assert verify(folder) == []
    shards = ShardSet.open(folder)
    assert not any(damaged(shards, number) for number in range(len(shards.manifest.shards)))


def test_missing_folder_and_manifest(folder: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        verify(folder / "x")
    (folder / "manifest.json").unlink()
    for look in (verify, describe):
        with pytest.raises(UserError, match="json: is missing"):
            look(folder)


def test_every_flipped_byte_is_found(folder: Path) -> None:
    path = folder / "toy-000001.tar"
    sound, shards = path.read_bytes(), ShardSet.open(folder)
    for offset in range(0, len(sound), 997):
        data = bytearray(sound)
        data[offset] ^= 1
        path.write_bytes(data)
        assert "toy-000001.tar: sha256" in (damaged(shards, 1) or ""), offset


def test_truncated_and_missing_shard(folder: Path) -> None:
    path = folder / "toy-000002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    assert any("toy-000002.tar: is truncated" in problem for problem in verify(folder))
    path.unlink()
    assert "toy-000002.tar: cannot be read (No such file" in the_problem(folder)
    with pytest.raises(UserError, match="tar: cannot be read"):
        list(ShardSet.open(folder).faces())


def test_stray_shard(folder: Path) -> None:
    (folder / "toy-000099.tar").write_bytes(b"")
    assert "toy-000099.tar: is not in the manifest" in the_problem(folder)


@pytest.mark.parametrize(
    "name", ["../x.png", "/etc/x.png", "a/b.png", "x", "x.tar.gz", ".png", "ü.png", "k00000.PNG", "\nx.png"]
)
def test_names_that_escape_or_break_the_rule_are_refused(folder: Path, name: str) -> None:
    def rename(member: tarfile.TarInfo, data: bytes) -> bytes:
        if member.name == "k00000.png":
            member.name = name
        return data

    path = retar(folder, 0, rename)
    problem = the_problem(folder)
    assert str(path) in problem
    assert "is not a plain KEY.EXTENSION file" in problem


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_links_folders_and_devices_are_refused(folder: Path, kind: bytes) -> None:
    def change(member: tarfile.TarInfo, data: bytes) -> bytes:
        if member.name == "k00001.png":
            member.type, member.linkname = kind, "/etc/passwd"
            return b""
        return data

    retar(folder, 0, change)
    assert "is not a plain KEY.EXTENSION file" in the_problem(folder)


@pytest.mark.parametrize("name", ["k00009.png", "k00000.jpg", "k00000.json"])
def test_samples_are_pairs(folder: Path, name: str) -> None:
    def rename(member: tarfile.TarInfo, data: bytes) -> bytes:
        member.name = name if member.name == "k00000.png" else member.name
        return data

    retar(folder, 0, rename)
    assert "is not a" in the_problem(folder)


@pytest.mark.parametrize("data", [b"x" * 20480, bytes(20480), bytes(512) + b"x" * 19968])
def test_not_a_tar(folder: Path, data: bytes) -> None:
    replace_shard(folder, 0, data)
    assert "toy-000000.tar: " in the_problem(folder)


def test_undecodable_image_and_bad_sidecar(folder: Path) -> None:
    (key,) = break_image(folder, 0, lambda image: image == 1)
    assert f"sample {key} cannot be decoded" in the_problem(folder)
    for text, message in {
        b"[]": "has JSON that is not an object",
        b"{}": "without identity",
        b"\xff": "",
        b"[" * 100_000: "",
        b'{"identity": "person 9", "label": 0, "source": ""}': "the manifest says 'person",
    }.items():
        retar(folder, 1, lambda m, data, text=text: text if m.name.endswith(".json") else data)  # type: ignore[misc]
        assert all(message in problem for problem in verify(folder)[1:])
        assert len(verify(folder)) > 2


def test_keys_are_unique_over_the_set(folder: Path) -> None:
    def rename(member: tarfile.TarInfo, data: bytes) -> bytes:
        member.name = member.name.replace("k00006", "k00000")
        return data

    retar(folder, 1, rename)
    assert "sample k00000 is also in toy-000000.tar" in the_problem(folder)


def _remove(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda m: m.pop(name)


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda m: m.update({name: value})


def _shard(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda m: m["shards"][0].update({name: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("schema", 2), "schema 2 is not supported (expected 1); update sparface"),
        (_remove("schema"), "is not the manifest of a shard set"),
        (_remove("licence"), "'licence' is missing"),
        (_set("more", 1), "'more' is unknown"),
        (_set("name", "../x"), "'name' has an invalid value"),
        (_set("size", [112]), "'size' has an invalid value"),
        (_set("size", [60000, 60000]), "'size' has an invalid value"),
        (_set("size", [16.0, 12]), "'size' has an invalid value"),
        (_set("encoding", "exe"), "'encoding' has an invalid value"),
        (_set("encoding", ["png"]), "'encoding' has an invalid value"),
        (_set("lossy", True), "'lossy' has an invalid value"),
        (_set("identities", {"a": -1}), "'identities' has an invalid value"),
        (_set("identities", {"a": 3}), "that has no identity"),
        (_set("provenance", "me"), "'provenance' has an invalid value"),
        (_set("shards", []), "'shards' has an invalid value"),
        (_shard("file", "../../etc/passwd"), "shard 0 has a file other than toy-000000.tar"),
        (_shard("samples", True), "shard 0 has samples that is not a count"),
        (_shard("bytes", -1), "shard 0 has bytes that is not a count"),
        (_shard("sha256", "x"), "shard 0 has no valid sha256"),
        (_shard("runs", [[0, 5]]), "do not sum to its samples"),
        (_shard("runs", [[0, 5], [1]]), "not [label, count] pairs"),
        (_shard("runs", [[0.5, 6]]), "not [label, count] pairs"),
        (_shard("runs", [[0, 3], [0, 3]]), "two consecutive runs"),
        (_shard("runs", [[-1, 6]]), "out of range"),
        (_shard("runs", [[2**40, 6]]), "out of range"),
        (_shard("runs", [[1, 5], [0, 1]]), "'identities' and the shards' runs disagree"),
        (lambda m: m["shards"][0].pop("runs"), "missing or unknown fields"),
        (lambda m: m["shards"].__setitem__(0, 3), "shard 0 is not an object"),
    ],
)
def test_a_bad_manifest_is_named_with_its_field(folder: Path, edit: Any, message: str) -> None:
    edit_manifest(folder, edit)
    with pytest.raises(UserError) as error:
        ShardSet.open(folder)
    assert str(folder / "manifest.json") in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "[" * 100_000, "\udcff"])
def test_a_manifest_that_is_not_json(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"manifest.json: is not"):
        ShardSet.open(folder)


def test_describe_says_what_is_in_it(folder: Path) -> None:
    text = describe(folder)
    for wanted in (
        "51 of 16x12",
        "png (lossless)",
        "12, images each: min 1, median 3.5, max 9",
        "2 identities",
        "CC0",
    ):
        assert wanted in text
    assert "a test" in text
    assert sum(COUNTS) == 51


def test_it_says_what_is_made_and_by_what(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with ShardSetWriter(tmp_path / "mixed", name="mixed", size=(8, 8)) as writer:
        for number in range(8):
            meta = {"synthetic": True, "maker": "a\x1b[31m GAN"} if number > 1 else {"synthetic": False}
            image = rng.integers(0, 256, (8, 8, 3), np.uint8)
            writer.add(Face(f"f{number}", image, "p", f"{number}.png", meta))
    (row,) = [line for line in describe(tmp_path / "mixed").splitlines() if line.startswith("origin")]
    assert re.fullmatch(r"origin +75% made by a\S+ GAN, 25% real", row) and "\x1b" not in row
    drawn = draw_set(tmp_path / "drawn", 2, 2, size=32)
    for folder in (drawn.folder, write_subset(drawn.folder, tmp_path / "part", 1, 2).folder):
        assert "100% drawn people, no real person" in describe(folder)
    (tmp_path / "mixed" / "mixed-000000.tar").unlink()
    assert "not known: the faces cannot be read" in describe(tmp_path / "mixed")


def test_the_manifest_comes_back_as_it_was_written(folder: Path) -> None:
    shard_set = ShardSet.open(folder)
    assert shard_set.manifest.to_json() == (folder / "manifest.json").read_bytes()
    assert json.loads(shard_set.manifest.to_json())["shards"][0]["file"] == "toy-000000.tar"


def test_a_manifest_of_many_runs_is_read_in_bounded_memory(folder: Path) -> None:
    """Every rank of a training reads it: a set of 100 million faces has ten million runs."""
    path = folder / "manifest.json"
    document = json.loads(path.read_bytes())
    entry = {"samples": 100, "bytes": 10**6, "sha256": "0" * 64, "runs": [[label, 1] for label in range(100)]}
    document["identities"] = {f"person {label}": 2000 for label in range(100)}
    document["shards"] = [entry | {"file": shard_file(document["name"], number)} for number in range(2000)]
    path.write_text(json.dumps(document))
    tracemalloc.start()
    manifest = Manifest.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert manifest.samples == 200_000
    assert peak < 8 * path.stat().st_size  # lists of pairs took 15 times as much


@pytest.mark.parametrize("member", [0, 1, 7])
@pytest.mark.parametrize("offset", [100, 108, 136, 148, 265, 329])
def test_a_header_without_its_checksum_is_not_sound(folder: Path, member: int, offset: int) -> None:
    """Mode, owner, time, the sum itself, user and device: fields that nothing else looks at."""
    path = folder / "toy-000000.tar"
    with tarfile.open(path) as tar:
        start = tar.getmembers()[member].offset
    data = bytearray(path.read_bytes())
    data[start + offset] ^= 1
    replace_shard(folder, 0, bytes(data))
    assert f"toy-000000.tar: wrong checksum in the tar header at byte {start};" in the_problem(folder)


@pytest.mark.parametrize(
    "size", [b"-0000000777", b"00000000 12", b"0_000000012", b"+0000000012", b"00000000009"]
)
def test_a_size_that_is_not_octal_digits_is_damage(folder: Path, size: bytes) -> None:
    data = bytearray((folder / "toy-000000.tar").read_bytes())
    data[124:135] = size
    data[148:154] = f"{sum(data[:148]) + sum(data[156:512]) + 256:06o}".encode()
    replace_shard(folder, 0, bytes(data))
    assert "toy-000000.tar: damaged tar header at byte 0" in the_problem(folder)


def test_a_manifest_cannot_promise_more_faces_than_memory_holds(folder: Path) -> None:
    """The stream and the pairs draw from what the manifest says, before a shard is opened."""
    claim = {"samples": 2**29, "bytes": 2**40, "runs": [[0, 2**29]]}
    edit_manifest(folder, lambda m: m["shards"][0].update(claim))
    with pytest.raises(UserError, match=r"manifest.json: shard 0 has more than 100,000 samples"):
        ShardSet.open(folder)


def test_a_manifest_of_texts_allocates_next_to_nothing(folder: Path) -> None:
    """numpy would make room for the longest of them in every place: gigabytes of a small file."""
    path = folder / "manifest.json"
    document = json.loads(path.read_bytes())
    document["shards"][0]["runs"] = [["0", "1"]] * 20_000 + [["0", "x" * 100_000]]
    path.write_text(json.dumps(document))
    tracemalloc.start()
    with pytest.raises(UserError, match="shard 0 has runs that are not"):
        Manifest.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * path.stat().st_size


def test_a_shard_that_is_truncated_while_it_is_read_is_named(folder: Path) -> None:
    """A memory map would end the process with SIGBUS."""
    shards = ShardSet.open(folder)
    with shards.shard(0) as shard:
        assert shards.face(shard, 0, shards.identities[0]).key == "k00000"
        os.truncate(folder / "toy-000000.tar", 512)
        with pytest.raises(UserError, match=r"toy-000000\.tar: was truncated while it was being read"):
            shards.face(shard, 0, shards.identities[0])


def test_a_shard_that_is_no_file_of_the_set_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "toy-000000.tar"
    path.rename(tmp_path / "elsewhere.tar")
    path.symlink_to(tmp_path / "elsewhere.tar")
    assert "is outside the folder" in the_problem(folder)
    path.unlink()
    os.mkfifo(path)
    assert "is not a regular file" in the_problem(folder)


def test_what_a_set_says_of_itself_cannot_drive_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hostile(manifest: dict[str, Any]) -> None:
        manifest["licence"] = "MIT\x1b[2J\r\x9b31m"
        manifest["provenance"] = {
            "pho\x1b]0;owned\x07tos": "x\nlicence      CC0",
            "nested": {"\x1b": "\u202e"},
        }

    lines = len(describe(folder).splitlines())
    edit_manifest(folder, hostile)
    assert main(["shards", "show", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "MIT" in said and "photos" not in said
    assert all(line.isprintable() for line in said.splitlines())
    assert len(said.splitlines()) <= lines + 2
