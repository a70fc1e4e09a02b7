"""Checkpoints: exact, whole or not at all, on any number of processes."""

from __future__ import annotations

import json
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
import torch.distributed as dist
from small_checkpoints import in_processes, numbered, save_now
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from processes import SERVER
from sparface.errors import UserError
from sparface.runs.checkpoint import CheckpointStore, read_weights
from sparface.runs.checkpoint_files import checkpoint_problem, read_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


class Training:
    """A small network with its optimizer, as the loop would save it."""

    def __init__(self, seed: int = 0, channels: int = 4) -> None:
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.network(torch.randn(2, 3, 8, 8)).square().sum().backward()
        self.optimizer.step()

    def tensors(self) -> dict[str, Any]:
        weights = self.network.state_dict()
        return {
            "networks": {"recognizer": weights},
            "optimizers": {"recognizer": self.optimizer.state_dict()},
            "averages": {},
            "scaler": {"scale": 1.5, "name": "none", "pair": (1, None)},
        }


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in leaves(item, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):  # JSON has no tuples
        return leaves(dict(enumerate(value)), name)
    return {name: value.clone() if isinstance(value, Tensor) else value}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        assert same, key


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def test_loads_the_exact_state_of_the_moment_of_the_call(store: CheckpointStore) -> None:
    training = Training()
    before = leaves(training.tensors())
    facts = {"schedule": {"images": 7}, "loss": 0.1 + 0.2, "run": None}
    store.save(64, training.tensors(), facts, identity="model")
    facts["loss"] = 0.0
    store.copied()
    for _ in range(5):
        training.step()
    store.finish()
    other = Training(seed=1)
    tensors = other.tensors()
    path = store.newest()
    assert path is not None
    loaded = store.load(path, tensors, identity="model")
    assert loaded == {"schedule": {"images": 7}, "loss": 0.1 + 0.2, "run": None}
    assert_same(leaves(tensors), before)
    weights = {key: value for key, value in before.items() if key.startswith(".networks.recognizer.")}
    assert_same(leaves(other.network.state_dict(), ".networks.recognizer"), weights)


def test_tensors_of_any_form_are_saved(store: CheckpointStore) -> None:
    whole = torch.arange(210.0).reshape(5, 6, 7)
    tensors = {
        "part": whole[1:, ::2],
        "turned": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "number": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "half": torch.rand(3).bfloat16(),
    }
    path = save_now(store, 100, {"all": tensors})
    assert_same(read_weights(path, "all"), tensors)
    path = save_now(store, 200, {"all": {"part": whole[:2, ::3]}})  # of another form than the copy before
    assert_same(read_weights(path, "all"), {"part": whole[:2, ::3]})


def test_keeps_the_newest_and_counts_images(store: CheckpointStore) -> None:
    for images in (100, 200, 1_000_000_000, 300):
        save_now(store, images)
    # 300 was saved after a billion, so the billion is not of this history and does not count.
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "step-000000200",
        "step-000000300",
        "step-1000000000",
    ]


def test_the_same_step_can_be_saved_again(store: CheckpointStore) -> None:
    save_now(store, 100)
    path = save_now(store, 100, numbered(7))
    assert torch.equal(read_weights(path, "networks.recognizer")["count"], torch.tensor(7))
    assert [entry.name for entry in store.folder.iterdir()] == ["step-000000100"]


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


def test_an_empty_or_missing_folder_has_no_checkpoint(store: CheckpointStore) -> None:
    assert store.newest() is None
    store.folder.mkdir()
    assert store.newest() is None
    assert store.skipped == []


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


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


def test_another_model_is_refused_and_nothing_is_loaded(store: CheckpointStore) -> None:
    path = save_now(store, 100, Training().tensors())
    other = Training(channels=5)
    before, tensors = leaves(other.tensors()), other.tensors()
    with pytest.raises(UserError, match=r"another model \(networks.recognizer.0.weight is \[4, 3, 3, 3\]"):
        store.load(path, tensors, identity="model")
    with pytest.raises(UserError, match="identity is model in the checkpoint and other here"):
        store.load(path, Training().tensors(), identity="other")
    fewer = Training().tensors()
    del fewer["optimizers"]
    with pytest.raises(UserError, match=r"optimizers.* is only in the checkpoint"):
        store.load(path, fewer, identity="model")
    assert_same(leaves(tensors), before)


def test_the_setting_that_differs_is_named(store: CheckpointStore) -> None:
    store.save(100, numbered(100), {}, identity=json.dumps({"recipe": "sparring", "size": 112, "seed": 0}))
    store.finish()
    with pytest.raises(UserError, match=r"\(size is 112 in the checkpoint and 128 here\)"):
        here = json.dumps({"recipe": "sparring", "size": 128, "seed": 0})
        store.load(store.folder / "step-000000100", numbered(0), identity=here)


def test_a_setting_that_is_null_is_as_one_that_is_absent(store: CheckpointStore) -> None:
    """A checkpoint may name what its recipe does not have; its tensors must be the same all the same."""
    store.save(100, Training().tensors(), {}, identity=json.dumps({"size": 112, "generator": None}))
    store.finish()
    path, here = store.folder / "step-000000100", json.dumps({"size": 112})
    store.load(path, Training().tensors(), identity=here)
    with pytest.raises(UserError, match=r"another model \(networks.recognizer.0.weight is"):
        store.load(path, Training(channels=5).tensors(), identity=here)


def test_reads_one_network_without_building_anything(store: CheckpointStore) -> None:
    training = Training()
    path = save_now(store, 100, training.tensors())
    assert_same(read_weights(path, "networks.recognizer"), dict(training.network.state_dict()))
    with pytest.raises(UserError, match=r"has no averages\.recognizer; it contains networks\.recognizer"):
        read_weights(path, "averages.recognizer")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(path.parent / "step-000000999", "networks.recognizer")


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


def sharded(images_seen: int) -> dict[str, Any]:
    """A replicated and a sharded tensor; the sharded one does not divide by two."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.arange(35.0).reshape(7, 5) + images_seen
    tensors = Training(seed=images_seen).tensors()
    tensors["networks"]["head"] = {"weight": distribute_tensor(whole, mesh, [Shard(0)])}
    return tensors


def save_together(rank: int, folder: Path, images_seen: int) -> None:
    store = CheckpointStore(folder)
    tensors = sharded(images_seen)
    store.save(images_seen, tensors, {"images": images_seen}, identity="model")
    # Collectives of the training go on in the meantime, and so does the training.
    for _ in range(20):
        dist.all_reduce(torch.ones(1000))
    store.copied()
    tensors["networks"]["head"]["weight"].zero_()
    store.finish()
    assert store.newest() == folder / f"step-{images_seen:09d}"


def load_together(rank: int, folder: Path, images_seen: int) -> None:
    store = CheckpointStore(folder)
    path = store.newest()
    assert path is not None
    tensors = sharded(0)
    assert store.load(path, tensors, identity="model") == {"images": images_seen}
    expected = sharded(images_seen)
    for tree in (tensors, expected):
        tree["networks"]["head"]["weight"] = tree["networks"]["head"]["weight"].full_tensor()
    assert_same(leaves(tensors), leaves(expected))
    with pytest.raises(UserError, match="another model"):
        store.load(path, tensors, identity="other")


@pytest.mark.parametrize(("saving", "loading"), [(2, 1), (1, 2)])
def test_loads_on_another_number_of_processes(tmp_path: Path, saving: int, loading: int) -> None:
    folder = tmp_path / "checkpoints"
    in_processes(saving, save_together, folder, 9)
    in_processes(loading, load_together, folder, 9)
    head = read_weights(folder / "step-000000009", "networks.head")
    assert torch.equal(head["weight"], torch.arange(35.0).reshape(7, 5) + 9)


def agree_on_damage(rank: int, folder: Path, answers: Path) -> None:
    store = CheckpointStore(folder)
    found = store.newest()
    with pytest.raises(UserError) as caught:
        store.load(folder / "step-000000200", numbered(0), identity="model")
    answer = {"found": str(found), "skipped": store.skipped, "error": str(caught.value)}
    (answers / f"{rank}.json").write_text(json.dumps(answer))


def test_all_ranks_agree_on_what_is_damaged(store: CheckpointStore, tmp_path: Path) -> None:
    good, bad = save_now(store, 100), save_now(store, 200)
    flip(bad / "__0_0.distcp", 20)
    in_processes(2, agree_on_damage, store.folder, tmp_path)
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["found"] == str(good)
    assert "was altered" in answers[0]["error"]


def fail_together(rank: int, folder: Path) -> None:
    store = CheckpointStore(folder)
    save_now(store, 100)
    if rank == 1:
        os.fsync = _refuse
    store.save(200, sharded(200), {}, identity="model")  # its own part is each rank's to write
    with pytest.raises(UserError, match="step-000000100 is kept"):
        store.finish()
    dist.barrier()
    assert [path.name for path in folder.iterdir()] == ["step-000000100"]


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    in_processes(2, fail_together, tmp_path / "checkpoints")


def outlive(rank: int, folder: Path) -> None:
    store = CheckpointStore(folder, timeout=20)
    save_now(store, 100)
    if rank == 1:
        os._exit(0)
    store.save(200, numbered(200), {}, identity="model")
    with pytest.raises(RuntimeError, match="step-000000100 is kept"):
        store.finish()
    os._exit(0)


def test_a_lost_process_is_no_mistake_of_the_users(tmp_path: Path) -> None:
    """A `UserError` would tell a supervisor not to start the run again."""
    in_processes(2, outlive, tmp_path / "checkpoints")


def test_the_one_before_another_and_one_discarded(store: CheckpointStore) -> None:
    first, second = save_now(store, 100), save_now(store, 200)
    assert store.newest(before=second) == first
    assert store.newest(before=first) is None
    store.discard(second)
    assert store.newest() == first


def test_a_sound_checkpoint_has_no_problem(store: CheckpointStore) -> None:
    path = save_now(store, 100)
    assert checkpoint_problem(path) is None
    assert read_state(path)["images_seen"] == 100
