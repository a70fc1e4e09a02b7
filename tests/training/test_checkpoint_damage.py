"""Checkpoints that a kill, a full disk or a bad byte has hit: named, and the one before is used."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import assert_same, flip, leaves, numbered, save_now

from processes import SERVER
from sparface.errors import UserError
from sparface.runs.checkpoint import CheckpointStore, read_weights
from sparface.runs.checkpoint_files import checkpoint_problem, read_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def test_a_replacement_cut_short_is_finished(store: CheckpointStore) -> None:
    save_now(store, 100)
    aside = store.folder / ".replaced-step-000000100"
    (store.folder / "step-000000100").rename(aside)
    (store.folder / ".writing-step-000000100").mkdir()
    assert store.newest() == aside
    save_now(store, 200)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-000000100", "step-000000200"]


def test_a_finished_run_leaves_nothing_behind_though_its_last_save_was_cut_short(tmp_path: Path) -> None:
    """Killed after the last checkpoint got its name: it was replaced, and older ones were not yet deleted."""
    store = CheckpointStore(tmp_path, keep=1)
    whole = save_now(store, 200)
    shutil.copytree(whole, tmp_path / ".replaced-step-000000200")
    shutil.copytree(whole, tmp_path / "step-000000100")
    (tmp_path / ".deleting-step-000000050").mkdir()
    CheckpointStore(tmp_path, keep=1).tidy(200)
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]


def test_a_checkpoint_is_never_half_deleted_under_its_name(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before each file goes: what still has a checkpoint's name is whole."""
    seen: list[str | None] = []

    def watched(path: Any, *args: Any, **kwargs: Any) -> None:
        seen.extend(checkpoint_problem(there) for there in store.folder.glob("step-*"))
        unlink(path, *args, **kwargs)

    unlink = os.unlink
    for images in (100, 200):
        save_now(store, images)
    monkeypatch.setattr(os, "unlink", watched)
    save_now(store, 300)
    assert len(seen) >= 6 and set(seen) == {None}
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-000000200", "step-000000300"]


def test_what_was_put_aside_is_kept_while_its_replacement_is_damaged(store: CheckpointStore) -> None:
    """A kill before the next checkpoint is written must not leave none."""
    final = save_now(store, 100)
    shutil.copytree(final, store.folder / ".replaced-step-000000100")
    (final / "state.json").unlink()
    store.tidy(100)
    assert store.newest() == final
    assert [path.name for path in store.folder.iterdir()] == [final.name]


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: flip(path / "__0_0.distcp", 20), "__0_0.distcp was altered"),
    (lambda path: os.truncate(path / "__0_0.distcp", 10), "__0_0.distcp has 10 bytes"),
    (lambda path: (path / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
    (lambda path: flip(path / "index.json", 50), "index.json was altered"),
    (lambda path: replace_by_folder(path / "__0_0.distcp"), "__0_0.distcp is missing"),
    (lambda path: replace_by_folder(path / "state.json"), "state.json: is not a regular file"),
    (lambda path: os.truncate(path / "state.json", 40), "state.json is truncated"),
    (lambda path: (path / "state.json").unlink(), "state.json cannot be read"),
    (lambda path: edit(path / "state.json", '"images":200', '"images":201'), "state.json is truncated or"),
    (lambda path: (path / "state.json").write_bytes(b"\xff\xfe"), "state.json is truncated or"),
]


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=[words for _, words in DAMAGES])
def test_damage_is_named_and_the_one_before_is_used(
    store: CheckpointStore, damage: Callable[[Path], object], words: str
) -> None:
    good, bad = save_now(store, 100), save_now(store, 200)
    damage(bad)
    assert store.newest() == good
    assert len(store.skipped) == 1
    assert "step-000000200" in store.skipped[0]
    assert words in store.skipped[0]
    with pytest.raises(UserError, match=re.escape(words)):
        store.load(bad, numbered(0), identity="model")
    with pytest.raises(UserError, match=re.escape(words)):
        read_weights(bad, "networks.recognizer")
    save_now(store, 150)
    assert store.newest() == store.folder / "step-000000150"


def save_for_ever(folder: Path, size: int) -> None:
    torch.set_num_threads(1)
    store = CheckpointStore(folder)
    newest = store.newest()
    images = read_state(newest)["images_seen"] if newest else 0
    while True:
        images += 1
        store.save(images, numbered(images, size), {"images": images}, identity="model")


def test_a_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    folder, size, last = tmp_path / "checkpoints", 2_000_000, 0
    moments, interrupted = random.Random(0), 0
    for _ in range(8):
        process = SERVER.Process(target=save_for_ever, args=(folder, size))
        process.start()
        wait_until(lambda last=last: (folder / f"step-{last + 1:09d}").exists())  # type: ignore[misc]
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        process.join()
        interrupted += any(folder.glob(".*"))
        store = CheckpointStore(folder)
        path = store.newest()
        assert path is not None
        assert store.skipped == []
        tensors = numbered(0, size)
        facts = store.load(path, tensors, identity="model")
        assert facts["images"] > last
        last = facts["images"]
        assert_same(leaves(tensors), leaves(numbered(last, size)))
    assert interrupted > 0, "no kill fell into a save; the test says nothing"


def wait_until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def test_a_full_disk_is_reported_and_the_checkpoint_before_stands(
    small_disk: Callable[[str], Path],
) -> None:
    store = CheckpointStore(small_disk("6m") / "checkpoints")
    good = save_now(store, 100, numbered(100, 250_000))
    store.save(200, numbered(200, 2_000_000), {}, identity="model")
    with pytest.raises(UserError, match="checkpoint at 200 images was not written") as caught:
        store.save(300, numbered(300), {}, identity="model")
    assert "no space left on device" in str(caught.value).lower()
    assert "step-000000100 is kept" in str(caught.value)
    assert [path.name for path in store.folder.iterdir()] == [good.name]
    assert save_now(store, 300) == store.newest()
    assert store.skipped == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, numbered(1), {}, identity="model")
    with pytest.raises(UserError, match="there is no earlier one"):
        store.finish()


def test_a_sound_checkpoint_has_no_problem(store: CheckpointStore) -> None:
    path = save_now(store, 100)
    assert checkpoint_problem(path) is None
    assert read_state(path)["images_seen"] == 100
